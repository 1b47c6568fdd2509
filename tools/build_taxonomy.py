"""Build girl_recbole/market/onet.json: the facts of O*NET that the simulated market uses.

    python tools/build_taxonomy.py FOLDER    # FOLDER holds O*NET's tab-separated tables, plain or .gz

Reads Occupation Data, Job Zones, Alternate Titles, Sample of Reported Titles, Technology Skills and Related Occupations
for the occupations that girl_recbole/market/wording.yaml lists, and keeps names and relations only: no description and
no task statement. Titles that two of the occupations share are left out, so that a title names one occupation; the
titles nearest to the official one become the JDs' titles, people's own ("reported") titles the CVs'.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import pandas as pd
import yaml

CODE, TITLES_A_SIDE, TOOLS_HOT, TOOLS_OWN = "O*NET-SOC Code", 3, 4, 6
ATTRIBUTION = (
    "This file includes information from the O*NET 29.3 Database by the U.S. Department of Labor, Employment and "
    "Training Administration (USDOL/ETA). Used under the CC BY 4.0 license. O*NET is a trademark of USDOL/ETA. The "
    "information was selected and shortened; USDOL/ETA has not approved, endorsed or tested these modifications."
)
_LEVELS = re.compile(r"\b(senior|junior|lead|chief|principal|head|trainee|intern|entry|apprentice|vice|sr|jr)\b", re.I)
_TITLE = re.compile(r"[A-Z][A-Za-z&'-]+( [A-Za-z&'-]+){0,3}")
_TOOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+#-]*( [A-Za-z0-9.+#-]+){0,3}")
_VENDORS = (
    "Microsoft", "Adobe", "IBM", "Oracle", "SAP", "Autodesk", "Apache", "Google", "Intuit", "Atlassian", "Bentley",
    "Sage", "Cisco", "Amazon", "Apple", "ADP", "Dassault Systemes", "ESRI", "Siemens", "Salesforce", "Corel",
    "The MathWorks",
)  # fmt: skip
_VAGUE = {"Access", "Project", "Word", "Word Online", "Notes", "Server", "Office", "Suite", "Cloud", "Web", "Teams",
          "Reports", "Docs", "Pages", "Director", "Mechanical", "Navigator", "Database", "Analytics", "Edge", "Store",
          "Application Server", "100 Contractor", "Enterprise", "Windows", "Chrome", "Go",
          "Systems CiscoWorks"}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder of O*NET's tables")
    folder = parser.parse_args().folder
    package = Path(__file__).resolve().parent.parent / "girl_recbole" / "market"
    wording = yaml.safe_load((package / "wording.yaml").read_text(encoding="utf-8"))
    codes = [line.split("|")[0].strip() for lines in wording["occupations"].values() for line in lines]
    tables = {name: _read(folder, name, codes) for name in ("Occupation Data", "Job Zones", "Alternate Titles",
              "Sample of Reported Titles", "Technology Skills", "Related Occupations")}  # fmt: skip
    official = tables["Occupation Data"].set_index(CODE)["Title"]
    zones = tables["Job Zones"].set_index(CODE)["Job Zone"].astype(int)
    jd_titles, cv_titles = _titles(tables, codes, official)
    tools, chosen = _tools(tables["Technology Skills"], codes)
    related = tables["Related Occupations"]
    related = related[related["Related O*NET-SOC Code"].isin(codes)]
    occupations = [
        {
            "code": code,
            "title": official[code],
            "zone": int(zones[code]),
            "jd_titles": jd_titles[code],
            "cv_titles": cv_titles[code],
            "tools": chosen[code],
            "related": related.loc[
                related[CODE] == code, ["Related O*NET-SOC Code", "Relatedness Tier"]
            ].values.tolist(),
        }
        for code in codes
    ]
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in (("attribution", ATTRIBUTION),)]
    for key, rows in (("tools", tools), ("occupations", occupations)):
        lines.append(f"{json.dumps(key)}: [\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]")
    (package / "onet.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{len(occupations)} occupations, {len(tools)} tools")


def _read(folder: Path, name: str, codes: list[str]) -> pd.DataFrame:
    path = next(p for p in (folder / f"{name}.txt", folder / f"{name}.txt.gz") if p.exists())
    frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    missing = sorted(set(codes) - set(frame[CODE])) if name == "Occupation Data" else []
    if missing:
        raise SystemExit(f"{path}: no occupation {', '.join(missing)}")
    return frame[frame[CODE].isin(codes)]


def _titles(tables, codes, official):
    """Two disjoint lists of titles an occupation, each title of one occupation only."""
    reported = _plain(tables["Sample of Reported Titles"], "Reported Job Title")
    alternate = _plain(tables["Alternate Titles"], "Alternate Title")
    owners = Counter()
    for code in codes:
        owners.update({title.lower() for title in [*reported.get(code, []), *alternate.get(code, [])]})
    jd, cv = {}, {}
    for code in codes:
        own = []
        for title in dict.fromkeys([*reported.get(code, []), *alternate.get(code, [])]):
            fits = _TITLE.fullmatch(title) and not _LEVELS.search(title) and 5 < len(title) <= 34
            if fits and owners[title.lower()] == 1:
                own.append(title)
        stems = {word[:5] for word in re.findall(r"[a-z]{4,}", official[code].lower())}
        near = {t: sum(w[:5] in stems for w in re.findall(r"[a-z]{4,}", t.lower())) / len(t.split()) for t in own}
        jd[code] = sorted(own, key=lambda t: (-near[t], len(t), t))[: min(TITLES_A_SIDE, len(own) // 2)]
        left = [t for t in own if t not in jd[code]]
        first = set(reported.get(code, []))
        cv[code] = sorted(left, key=lambda t: (t not in first, len(t), t))[:TITLES_A_SIDE]
        if min(len(jd[code]), len(cv[code])) < 2:
            raise SystemExit(f"{code}: too few titles of its own ({own}); choose another occupation")
    return jd, cv


def _plain(table: pd.DataFrame, column: str) -> dict[str, list[str]]:
    """{code: titles}, "Licensed Practical Nurse (LPN)" without its brackets."""
    names = table[column].str.replace(r" \(.*\)$", "", regex=True)
    return names.groupby(table[CODE]).apply(list).to_dict()


def _tools(table: pd.DataFrame, codes: list[str]):
    """Per occupation the tools most in demand and some that few others use; each with its formal and short name."""
    table = table[table["Example"].map(lambda n: bool(_TOOL.fullmatch(n)) and 3 <= len(n) <= 30 and _proper(n))]
    spread = table.groupby("Example")[CODE].nunique()
    number: dict[str, int] = {}
    shorts: dict[str, str] = {}
    tools, chosen = [], {}
    for code in codes:
        rows = table[table[CODE] == code].drop_duplicates("Example")
        rank = (rows["In Demand"] == "Y") * 2 + (rows["Hot Technology"] == "Y")
        rows = rows.assign(rank=rank, spread=rows["Example"].map(spread))
        hot = rows[rows["rank"] > 0].sort_values(["rank", "spread", "Example"], ascending=[False, True, True])
        own = rows[rows["rank"] == 0].sort_values(["spread", "Example"], ascending=[False, True])
        own = own[own["spread"] <= 4]
        names = [*hot["Example"].head(TOOLS_HOT), *own["Example"].head(TOOLS_OWN)]
        for name in names:
            if name not in number:
                short = _short(name)
                if short in shorts or short in number or short in _VAGUE:
                    short = name
                shorts[short] = name
                number[name] = len(tools)
                kind = table.loc[table["Example"] == name, "Commodity Title"].iloc[0]
                tools.append([name, short, kind])
        chosen[code] = [number[name] for name in names]
    return tools, chosen


def _proper(name: str) -> bool:
    """A product's name, not "Accounting software": a capital or digit beyond the first letter, or no "software"."""
    return bool(re.search(r"[A-Z0-9]", name[1:])) or (" " not in name and name[0].isupper() and len(name) > 4)


def _short(name: str) -> str:
    """What people write in CVs: "Microsoft Excel" -> "Excel", "Structured query language SQL" -> "SQL"."""
    plain = re.sub(r" (software|system|program|platform)$", "", name, flags=re.I)
    words = plain.split()
    if len(words) > 2 and words[-1].isupper() and words[1].islower():
        return words[-1]
    for vendor in _VENDORS:
        if plain.startswith(vendor + " ") and len(plain) > len(vendor) + 3:
            return plain[len(vendor) + 1 :]
    return words[0] if len(words) == 3 and len(words[0]) > 5 else plain


if __name__ == "__main__":
    main()
