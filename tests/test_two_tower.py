"""GIRL's predictors: the equations by hand, planted rules, controls, full ranking, checkpoints, trained encoders."""

import copy

import numpy as np
import pytest
import torch
from conftest import make_toy
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.quick_start import load_data_and_model
from recbole.utils import get_model, get_trainer, init_seed
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from test_dataset import make_config

from girl_recbole.atomic import write_generated
from girl_recbole.errors import ConfigError, DataError
from girl_recbole.models import scorer, two_tower
from girl_recbole.models.two_tower import derangement

MODELS = ["GIRLBaseMLP", "GIRLBaseDot", "GIRLEnhancedMLP", "GIRLEnhancedDot"]


def build(toy, encoder, model, **settings):
    """(config, loaders, model) as run_recbole makes them."""
    config = make_config(toy, encoder, model=model, **settings)
    init_seed(config["seed"], True)
    loaders = data_preparation(config, create_dataset(config))
    return config, loaders, get_model(model)(config, loaders[0]._dataset)


def fit(config, loaders, model, saved=False):
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.fit(loaders[0], loaders[1], verbose=False, saved=saved)
    return trainer


def pairs_of(loader):
    return loader._dataset.inter_feat


@torch.no_grad()
def test_auc(model, loader):
    model.eval()
    batch = pairs_of(loader)
    return roc_auc_score(batch["label"].numpy(), model.predict(batch).numpy())


test_auc.__test__ = False


def test_vectors_are_standardised_and_jobs_encoded_in_blocks_as_at_once(toy, tiny_encoder, monkeypatch):
    def made():
        _, loaders, model = build(toy, tiny_encoder, "GIRLEnhancedDot")
        model.eval()
        with torch.no_grad():
            return loaders, model, model.full_sort_predict(Interaction({"user_id": torch.arange(1, 9)}))

    loaders, whole, scores = made()
    monkeypatch.setattr(two_tower, "_ROWS", 7)
    monkeypatch.setattr(scorer, "_JOBS", 11)
    _, blocks, again = made()
    torch.testing.assert_close(again, scores, atol=1e-6, rtol=0)
    for kind, field in (("cv", "user_id"), ("jd", "item_id"), ("gen", "user_id")):
        vectors = whole.rows(kind, torch.unique(pairs_of(loaders[0])[field])).double()
        for model in (whole, blocks):
            np.testing.assert_allclose(getattr(model, f"{kind}_mean"), vectors.mean(dim=0), atol=1e-6)
            spread = vectors.var(dim=0, correction=0).mean().sqrt()
            assert getattr(model, f"{kind}_spread").item() == pytest.approx(spread.item(), rel=1e-5)


def test_tables_stay_half_precise_and_rows_are_float32(toy, tiny_encoder):
    _, _, model = build(toy, tiny_encoder, "GIRLEnhancedDot")
    assert model.rows.gen.dtype == torch.float16
    rows = model.rows("gen", torch.tensor([0, 5, 5]))
    assert rows.dtype == torch.float32
    assert not rows[0].any()
    assert torch.equal(rows[1], model.rows.gen[5].float())


# --------------------------------------------------------------------------------------------------- the equations


def _plant(model, **vectors):
    """Two-dimensional vectors for the ids 0, 1, 2 and no standardisation, so that a score is a sum by hand."""
    for kind, rows in vectors.items():
        setattr(model.rows, kind, torch.tensor([[0.0, 0.0], *rows]))
        if hasattr(model, f"{kind}_mean"):
            setattr(model, f"{kind}_mean", torch.zeros(2))
            setattr(model, f"{kind}_spread", torch.ones(()))


def _ones(model, sizes, out):
    """A one-layer MLP whose weights are known: W1[k, i] = (k + 1) (i + 1), b1 = 0; W2 = 1, b2 = 0."""
    model.rows.dimension = 2
    model.mlp = two_tower._mlp(sizes, out, 0.0)
    with torch.no_grad():
        first, last = model.mlp[0], model.mlp[-1]
        first.weight.copy_(torch.outer(torch.arange(1.0, sizes[1] + 1), torch.arange(1.0, sizes[0] + 1)))
        first.bias.zero_()
        last.weight.fill_(1.0)
        last.bias.zero_()


PAIR = Interaction({"user_id": torch.tensor([1, 2]), "item_id": torch.tensor([2, 1])})
CV, JD, GEN = [[1.0, 0.0], [0.0, -1.0]], [[2.0, 1.0], [1.0, -3.0]], [[0.5, 1.0], [1.0, 1.0]]


def test_eq_10_by_hand(toy, tiny_encoder):
    """[c; j] . (1, 2, 3, 4): pair 1 (1, 0, 1, -3) -> 1 + 3 - 12 = -8, ReLU 0. Pair 2 (0, -1, 2, 1) -> -2 + 6 + 4 = 8.

    Hidden units 1x and 2x, output their sum: 0 and 24.
    """
    _, _, model = build(toy, tiny_encoder, "GIRLBaseMLP")
    _plant(model, cv=CV, jd=JD)
    _ones(model, [4, 2], 1)
    assert model.logits(PAIR).tolist() == pytest.approx([0, 24])


def test_eq_13_by_hand(toy, tiny_encoder):
    """[c; j; j'] . (1, ..., 6): pair 1 adds .5 * 5 + 1 * 6 = 8.5 to -8: .5; pair 2 adds 11 to 8: 19. Times 1 + 2."""
    _, _, model = build(toy, tiny_encoder, "GIRLEnhancedMLP")
    _plant(model, cv=CV, jd=JD, gen=GEN)
    _ones(model, [6, 2], 1)
    assert model.logits(PAIR).tolist() == pytest.approx([1.5, 57])


def test_eq_11_by_hand(toy, tiny_encoder):
    """c . j: pair 1 (1, 0) . (1, -3) = 1; pair 2 (0, -1) . (2, 1) = -1. Scale 3, bias .5."""
    _, _, model = build(toy, tiny_encoder, "GIRLBaseDot")
    _plant(model, cv=CV, jd=JD)
    model.dot_mean, model.dot_spread = torch.zeros(()), torch.ones(())
    with torch.no_grad():
        model.scale.fill_(3.0)
        model.bias.fill_(0.5)
    assert model.logits(PAIR).tolist() == pytest.approx([3.5, -2.5])
    assert model.predict(PAIR).tolist() == pytest.approx([1 / (1 + np.exp(-3.5)), 1 / (1 + np.exp(2.5))])


def test_eqs_14_and_15_by_hand(toy, tiny_encoder):
    """[c; j'] . (1, 2, 3, 4): (1, 0, .5, 1) -> 6.5; (0, -1, 1, 1) -> 5. c' = (3x, 3x), x = 6.5 and 5.

    c' . j: 19.5 (1 - 3) = -39 and 15 (2 + 1) = 45.
    """
    _, _, model = build(toy, tiny_encoder, "GIRLEnhancedDot")
    _plant(model, cv=CV, jd=JD, gen=GEN)
    _ones(model, [4, 2], 2)
    model.dot_mean, model.dot_spread = torch.zeros(()), torch.ones(())
    with torch.no_grad():
        model.bias.zero_()
    assert model.logits(PAIR).tolist() == pytest.approx([-39, 45])


def test_loss_is_binary_cross_entropy_by_hand(toy, tiny_encoder):
    """Logits 0 and ln 3, labels 1 and 0: (-log 1/2 - log 1/4) / 2 = 1.5 ln 2."""
    _, _, model = build(toy, tiny_encoder, "GIRLBaseMLP")
    model.logits = lambda interaction: torch.tensor([0.0, np.log(3.0)])
    loss = model.calculate_loss(Interaction({"label": torch.tensor([1.0, 0.0])}))
    assert loss.item() == pytest.approx(1.5 * np.log(2), rel=1e-6)


def test_platt_moves_probabilities_and_not_logits(toy, tiny_encoder):
    _, loaders, model = build(toy, tiny_encoder, "GIRLBaseMLP")
    model.eval()
    batch = pairs_of(loaders[2])
    logits = model.logits(batch)
    assert torch.allclose(model.predict(batch), torch.sigmoid(logits))
    model.platt.copy_(torch.tensor([2.0, -1.0]))
    assert torch.allclose(model.predict(batch), torch.sigmoid(2 * logits - 1))
    assert torch.allclose(model.logits(batch), logits)


# ---------------------------------------------------------------------------------------------------- planted rules


@pytest.mark.parametrize(
    "model, settings",
    [("GIRLBaseMLP", {}), ("GIRLBaseDot", {"cv_mlp": True}), ("GIRLEnhancedMLP", {}), ("GIRLEnhancedDot", {})],
)
def test_learns_that_trades_must_agree_for_seekers_never_seen(toy, tiny_encoder, model, settings):
    config, loaders, built = build(toy, tiny_encoder, model, **settings)
    trainer = fit(config, loaders, built, saved=True)
    result = trainer.evaluate(loaders[2])
    assert result["auc"] > 0.95
    assert result["logloss"] < 0.35
    assert test_auc(built, loaders[2]) == pytest.approx(result["auc"], abs=1e-3)


def test_base_dot_has_only_a_scale_and_a_bias_and_finds_them(toy, tiny_encoder):
    """Its order is that of the plain dot products, and its scale and bias those of logistic regression on them."""
    config, loaders, model = build(toy, tiny_encoder, "GIRLBaseDot")
    assert sum(p.numel() for p in model.parameters()) == 2
    fit(config, loaders, model)
    train, test = pairs_of(loaders[0]), pairs_of(loaders[2])
    dots = [(model.rows("cv", p["user_id"]) * model.rows("jd", p["item_id"])).sum(dim=1).numpy() for p in (train, test)]
    assert test_auc(model, loaders[2]) == pytest.approx(roc_auc_score(test["label"], dots[1]), abs=1e-6)
    scale = dots[0].std()
    reference = LogisticRegression(C=np.inf, tol=1e-8).fit(dots[0][:, None] / scale, train["label"])
    expected = reference.predict_proba(dots[1][:, None] / scale)[:, 1]
    np.testing.assert_allclose(model.logits(test).sigmoid().detach(), expected, atol=0.03)


@pytest.mark.parametrize("model", ["GIRLEnhancedMLP", "GIRLEnhancedDot"])
def test_enhanced_learns_from_the_generated_jd_and_the_controls_cannot(tmp_path, tiny_encoder, model):
    toy = make_toy(tmp_path, signal="gen")
    auc = {}
    for generated in ("real", "zeros", "shuffled", "cv"):
        config, loaders, built = build(toy, tiny_encoder, model, generated=generated)
        fit(config, loaders, built)
        auc[generated] = test_auc(built, loaders[2])
    assert auc["real"] > 0.95
    assert max(auc["zeros"], auc["shuffled"], auc["cv"]) < 0.65


def test_derangement_moves_everybody_and_is_seeded():
    for n in (2, 3, 50):
        other = derangement(n, seed=1)
        assert sorted(other) == list(range(n))
        assert (other != np.arange(n)).all()
    np.testing.assert_array_equal(derangement(50, seed=1), derangement(50, seed=1))
    assert (derangement(50, seed=1) != derangement(50, seed=2)).any()
    with pytest.raises(DataError, match="at least 2 seekers; there is 1"):
        derangement(1, seed=0)


def test_controls_read_what_they_say(toy, tiny_encoder):
    ids = torch.arange(1, 6)
    sides = {}
    for generated in ("real", "zeros", "shuffled", "cv"):
        _, _, model = build(toy, tiny_encoder, "GIRLEnhancedMLP", generated=generated)
        sides[generated] = (model, *model._user_side(ids).split(32, dim=1))
    model, c, j_gen = sides["real"]
    assert torch.allclose(j_gen * model.gen_spread + model.gen_mean, model.rows("gen", ids), atol=1e-5)
    assert not sides["zeros"][2].any()
    assert torch.equal(sides["cv"][2], c)
    model = sides["shuffled"][0]
    assert torch.equal(sides["shuffled"][2], model._standardised("gen", model.other[ids]))
    assert (model.other[1:] != torch.arange(1, model.n_users)).all()
    assert model.other[0] == 0
    assert not hasattr(sides["zeros"][0].rows, "gen")


def test_several_generated_jds_are_averaged(toy, tiny_encoder):
    _, loaders, model = build(toy, tiny_encoder, "GIRLEnhancedMLP", n_generated=2)
    dataset = loaders[0]._dataset
    from girl_recbole.encoder import Encoder

    texts = dataset.texts("gen.sft", 2)[3]
    assert len(texts) == 2
    np.testing.assert_allclose(model.rows.gen[3], Encoder(str(tiny_encoder)).encode(texts)[0].mean(axis=0), atol=2e-3)


# ---------------------------------------------------------------------------------------------------------- scoring


@pytest.mark.parametrize("model", [*MODELS, "GIRLBaseDot+mlp"])
def test_full_ranking_equals_scoring_the_pairs(toy, tiny_encoder, model, monkeypatch):
    name, _, extra = model.partition("+")
    config, loaders, built = build(toy, tiny_encoder, name, cv_mlp=bool(extra), epochs=2)
    fit(config, loaders, built)
    monkeypatch.setattr("girl_recbole.models.two_tower._BLOCK", 256 * 7)  # 7 jobs a block
    built.eval()
    users = torch.tensor([3, 1, 100])
    with torch.no_grad():
        scores = built.full_sort_predict(Interaction({"user_id": users})).view(3, built.n_items)
        slow = torch.stack(
            [
                built.predict(
                    Interaction({"user_id": user.repeat(built.n_items), "item_id": torch.arange(built.n_items)})
                )
                for user in users
            ]
        )
    torch.testing.assert_close(scores[:, 1:], slow[:, 1:], atol=1e-5, rtol=0)
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_full_ranking_sees_changed_weights(toy, tiny_encoder):
    _, _, model = build(toy, tiny_encoder, "GIRLBaseMLP")
    model.eval()
    user = Interaction({"user_id": torch.tensor([1])})
    with torch.no_grad():
        before = model.full_sort_predict(user)
        assert torch.equal(model.full_sort_predict(user), before)
        model.mlp[0].weight.mul_(2)
        after = model.full_sort_predict(user)
        pairs = Interaction({"user_id": torch.ones(model.n_items).long(), "item_id": torch.arange(model.n_items)})
        torch.testing.assert_close(after[1:], model.predict(pairs)[1:], atol=1e-5, rtol=0)
    assert (after - before).abs().max() > 1e-4


@pytest.mark.parametrize("model", MODELS)
def test_batch_size_changes_nothing(toy, tiny_encoder, model):
    _, loaders, built = build(toy, tiny_encoder, model)
    built.eval()
    batch = pairs_of(loaders[2])
    with torch.no_grad():
        whole = built.predict(batch)
        parts = torch.cat([built.predict(batch[at : at + 7]) for at in range(0, len(batch), 7)])
    torch.testing.assert_close(whole, parts, atol=1e-6, rtol=0)


def test_ranking_metrics_run_in_recbole(toy, tiny_encoder):
    """Every seeker's matched jobs are a quarter of all; a model that knows the rule puts them first."""
    settings = {"eval_args": {"mode": "full", "split": {"RS": [1, 1, 1]}}, "metrics": "NDCG", "valid_metric": "NDCG@10"}
    config, loaders, model = build(toy, tiny_encoder, "GIRLEnhancedMLP", repeatable=True, **settings)
    trainer = fit(config, loaders, model, saved=True)
    untrained = build(toy, tiny_encoder, "GIRLEnhancedMLP", repeatable=True, epochs=1, learning_rate=0.0, **settings)
    baseline = fit(*untrained).evaluate(loaders[2], load_best_model=False)
    assert trainer.evaluate(loaders[2])["ndcg@10"] > 2 * baseline["ndcg@10"]


# ------------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_holds_no_vectors_and_loads(toy, tiny_encoder, model):
    config, loaders, built = build(toy, tiny_encoder, model, epochs=3)
    trainer = fit(config, loaders, built, saved=True)
    state = built.state_dict()
    assert all(tensor.ndim < 2 or name.startswith("mlp.") for name, tensor in state.items())
    assert "platt" in state
    built.eval()
    _, loaded, _, _, _, test_data = load_data_and_model(trainer.saved_model_file)
    loaded.eval()
    batch = pairs_of(test_data)
    with torch.no_grad():
        torch.testing.assert_close(loaded.predict(batch), built.predict(batch))


def test_vectors_are_shared_by_copies_and_left_out_of_ddp(toy, tiny_encoder):
    _, loaders, model = build(toy, tiny_encoder, "GIRLEnhancedMLP", generated="shuffled")
    twin = copy.deepcopy(model)
    assert twin.rows.cv.data_ptr() == model.rows.cv.data_ptr()
    assert twin.mlp[0].weight.data_ptr() != model.mlp[0].weight.data_ptr()
    assert twin.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(twin.eval().predict(pairs_of(loaders[2])), model.eval().predict(pairs_of(loaders[2])))
    assert set(model._ddp_params_and_buffers_to_ignore) <= {name for name, _ in model.named_buffers()}
    assert "rows.cv" in model._ddp_params_and_buffers_to_ignore


def test_a_checkpoint_of_another_encoder_is_refused(toy, tiny_encoder):
    _, _, model = build(toy, tiny_encoder, "GIRLBaseMLP")
    state = model.state_dict()
    state["rows.encoder_sha256"] = state["rows.encoder_sha256"].flip(0)
    with pytest.raises(DataError, match="trained on another encoder's vectors .*train again"):  # noqa: RUF043
        model.load_state_dict(state)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"generated": "zero"}, "generated: 'zero' is unknown; known: real, zeros, shuffled, cv"),
        ({"mlp_hidden_sizes": []}, r"mlp_hidden_sizes: \[\]; a list of at least one positive int"),
        ({"mlp_hidden_sizes": [True]}, r"mlp_hidden_sizes: \[True\]; a list"),
        ({"mlp_hidden_sizes": 256}, "mlp_hidden_sizes: 256; a list"),
        ({"generated": None}, "generated: 'none' is unknown; known: real, zeros, shuffled, cv"),
        ({"dropout_prob": 1}, "dropout_prob: 1; a number of at least 0 and below 1"),
        ({"dropout_prob": -0.1}, "dropout_prob: -0.1; a number"),
        ({"dropout_prob": "half"}, "dropout_prob: 'half'; a number"),
        ({"n_generated": 0}, "n_generated: 0 generated JDs a seeker; an int of at least 1"),
        ({"n_generated": 1.5}, "n_generated: 1.5 generated JDs a seeker; an int"),
        ({"tune_encoder": "all"}, "tune_encoder: 'all' is unknown; known: none, full, lora"),
    ],
)
def test_unusable_settings_are_errors(toy, tiny_encoder, settings, message):
    with pytest.raises(ConfigError, match=message):
        build(toy, tiny_encoder, "GIRLEnhancedMLP", **settings)


def test_a_seeker_without_a_generated_jd_is_an_error(toy, tiny_encoder):
    write_generated(toy.gdoc("sft"), [(f"u{n}", 0, "trade1") for n in range(240) if n not in (17, 31, 88)])
    with pytest.raises(DataError, match=r"3 of 240 users have no generated JD .*Run `girl generate toy"):
        build(toy, tiny_encoder, "GIRLEnhancedMLP")
    build(toy, tiny_encoder, "GIRLEnhancedMLP", generated="cv")  # which needs none


# -------------------------------------------------------------------------------------------- encoders in training


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_an_encoder_in_training_starts_from_the_frozen_vectors(toy, tiny_encoder, mode):
    _, _, frozen = build(toy, tiny_encoder, "GIRLEnhancedMLP", n_generated=2)
    _, _, tuned = build(toy, tiny_encoder, "GIRLEnhancedMLP", n_generated=2, tune_encoder=mode)
    tuned.eval()
    ids = torch.tensor([5, 0, 5, 9])
    for kind in ("cv", "jd", "gen"):
        expected = frozen.rows(kind, ids)
        torch.testing.assert_close(tuned.rows(kind, ids).detach(), expected, atol=3e-3, rtol=0)
        with torch.no_grad():  # kept between calls
            torch.testing.assert_close(tuned.rows(kind, ids), expected, atol=3e-3, rtol=0)
            torch.testing.assert_close(tuned.rows(kind, ids[:2]), expected[:2], atol=3e-3, rtol=0)
        assert not expected[1].any()


def test_adapters_of_the_encoder_are_not_those_of_the_language_model(toy, tiny_encoder):
    settings = {"tune_encoder": "lora", "encoder_lora_rank": 3, "lora_rank": 5}
    _, _, model = build(toy, tiny_encoder, "GIRLBaseMLP", **settings)
    assert {len(value) for name, value in model.named_parameters() if "lora_A" in name} == {3}


@pytest.mark.parametrize("mode, model", [("full", "GIRLEnhancedDot"), ("lora", "GIRLBaseMLP"), ("full", "GIRLBaseDot")])
def test_an_encoder_in_training_learns_and_is_in_the_checkpoint(toy, tiny_encoder, mode, model):
    settings = {"tune_encoder": mode, "epochs": 2, "train_batch_size": 64, "learning_rate": 0.003}
    config, loaders, built = build(toy, tiny_encoder, model, **settings)
    before = {name: value.clone() for name, value in built.rows.encoder.named_parameters()}
    trainer = fit(config, loaders, built, saved=True)
    moved = {n for n, value in built.rows.encoder.named_parameters() if not torch.equal(value, before[n])}
    saved = {name.removeprefix("rows.encoder.") for name in built.state_dict() if name.startswith("rows.encoder.")}
    if mode == "lora":
        assert moved
        assert all("lora_" in name for name in moved)
        assert saved == {name for name in before if "lora_" in name}
    else:
        assert len(moved) > 20
        assert saved >= set(before)
    result = trainer.evaluate(loaders[2])
    assert result["auc"] > 0.9
    _, loaded, _, _, _, test_data = load_data_and_model(trainer.saved_model_file)
    loaded.eval()
    built.eval()
    with torch.no_grad():
        batch = pairs_of(test_data)
        torch.testing.assert_close(loaded.predict(batch), built.predict(batch), atol=1e-5, rtol=0)
        users = Interaction({"user_id": torch.tensor([4])})
        pairs = Interaction({"user_id": torch.full((built.n_items,), 4), "item_id": torch.arange(built.n_items)})
        ranked = loaded.full_sort_predict(users)
        torch.testing.assert_close(ranked[1:], loaded.predict(pairs)[1:], atol=1e-5, rtol=0)


def test_an_encoder_in_training_reads_one_window(toy, tiny_encoder):
    with pytest.raises(ConfigError, match="text_windows: 2 with tune_encoder: full"):
        build(toy, tiny_encoder, "GIRLBaseMLP", tune_encoder="full", text_windows=2)
