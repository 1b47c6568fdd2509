"""How often a generated JD names the occupation of a job that suits: `python benchmarks/generated_titles.py`.

For the seekers of the recommendation stage who are not in the sft stage and have a matched job: is the title of the JD
that was written for them (sample 0 of NAME.GENERATOR.gdoc) one of an occupation, or of a family, of their matched jobs?
Titles are looked up by string. Beside it: the JD of a random pair of the sft stage, that of the sft stage's nearest CV
(TF-IDF), and another matched JD of the same seeker. Works for a simulated market, whose occupations are known.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

from common import nearest_items

import girl_recbole
from girl_recbole.atomic import DatasetFiles, read_docs, read_generated, read_interactions, read_table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="jobrec-sim")
    parser.add_argument("--generator", default="sft")
    parser.add_argument("--data-path", type=Path, default=Path("dataset"))
    args = parser.parse_args()
    files = DatasetFiles(args.data_path / args.dataset, args.dataset)
    table = read_table(files.path("item"))
    family = dict(zip(table["occupation"], table["family"], strict=True))
    onet = json.loads((Path(girl_recbole.__file__).parent / "market" / "onet.json").read_text(encoding="utf-8"))
    occupation = {title: o["code"] for o in onet["occupations"] if o["code"] in family for title in o["jd_titles"]}
    longest_first = sorted(occupation, key=len, reverse=True)
    title = re.compile(r"\b(" + "|".join(map(re.escape, longest_first)) + r")\b")

    def named(jd: str) -> str | None:
        found = title.search(jd.split(". ")[0]) or title.search(jd)
        return occupation[found[1]] if found else None

    cvs, jds = read_docs(files.udoc), read_docs(files.idoc)
    sft = read_interactions(files.stage("sft"))
    sft = sft[sft["label"] == 1]
    matched = read_interactions(files.inter)
    matched = matched[(matched["label"] == 1) & ~matched["user_id"].isin(set(sft["user_id"]))]
    wanted = {user: [named(jds[item]) for item in rows["item_id"]] for user, rows in matched.groupby("user_id")}
    generated = read_generated(files.gdoc(args.generator))
    users = [user for user in generated if user in wanted]
    pairs = list(zip(sft["user_id"], sft["item_id"], strict=True))
    draw = random.Random(0)

    def line(name: str, guesses: list[str | None], truths: list[list[str | None]]) -> None:
        rows = list(zip(guesses, truths, strict=True))
        same = sum(guess is not None and guess in truth for guess, truth in rows) / len(rows)
        kin = sum(guess is not None and family[guess] in {family[t] for t in truth if t} for guess, truth in rows)
        print(f"{name:28s} {len(rows):6d} {same:11.3f} {kin / len(rows):7.3f}")

    truths = [wanted[user] for user in users]
    print(f"{'JD':28s} {'seekers':>6s} {'occupation':>11s} {'family':>7s}")
    line("random sft pair", [named(jds[draw.choice(pairs)[1]]) for _ in users], truths)
    line("nearest sft CV", [named(jds[item]) for item in nearest_items(pairs, users, cvs)], truths)
    for sample in range(len(generated[users[0]])):
        line(f"generated, sample {sample}", [named(generated[user][sample]) for user in users], truths)
    several = [user for user in users if len(wanted[user]) > 1]
    line("another matched JD", [wanted[user][0] for user in several], [wanted[user][1:] for user in several])
    known = {jds[item] for _, item in pairs}
    copies = sum(generated[user][0] in known for user in users) / len(users)
    print(f"sample 0 is word for word a JD of the sft stage: {copies:.3f}")


if __name__ == "__main__":
    main()
