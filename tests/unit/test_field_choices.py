"""Every estimator from the words of a configuration to a trained step, an exported graph and the list of names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from launch import summary
from launch.dry_run import plan_rows
from models.binarization import Binarization
from reste import binary_layers, create_estimator, list_estimators, list_quantizers, list_scalings
from trainer.config import load_config
from trainer.errors import ConfigError
from trainer.export.frozen import freeze
from trainer.export.untrusted import OPERATORS
from trainer.network import instantiate
from trainer.stages import load_training
from trainer.study.methods import find_methods

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
NOT_FOR_WEIGHTS = {"heaviside", "ternary_duo"}
OPTIONS = {
    "tanh": {"scale": 2.0},
    "ede": {"t_min": 0.01, "t_max": 5.0},
    "swish_sign": {"beta": 3.0},
    "fda": {"omega": 0.2, "terms": 4, "last_terms": 8},
    "dsq": {"alpha": 0.1, "learn": True},
    "rational": {"threshold": 2.0},
    "reste_levels": {"levels": 4},
}


def configured(name, options):
    words = ", ".join(f"{key}: {str(value).lower()}" for key, value in options.items())
    plain = ["estimator.threshold=null", "estimator.knee=null", "model.name=resnet20_1w1a"]
    plain += ["estimator.weights=ste"] if name in NOT_FOR_WEIGHTS else []
    return load_config(QUICKSTART, [*plain, f"estimator.name={name}", f"estimator.options={{{words}}}"])


@pytest.mark.parametrize("name", list_estimators())
def test_options_of_a_configuration_reach_every_layer_and_a_step_can_be_made(name):
    options = OPTIONS.get(name, {})
    torch.manual_seed(0)
    model = instantiate(configured(name, options), 10)
    layers = [layer for _, layer in binary_layers(model)]
    estimators = [layer.activation_estimator for layer in layers]
    if name not in NOT_FOR_WEIGHTS:
        estimators += [layer.weight_estimator for layer in layers]
    assert len(estimators) >= 18
    for estimator in estimators:
        assert estimator.name == name
        assert {key: getattr(estimator, key) for key in options} == options
    model(torch.randn(4, 3, 32, 32)).square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_an_unknown_option_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"^estimator: estimator 'tanh' has no option 'beta'; its options: scale"):
        instantiate(configured("tanh", {"beta": 2.0}), 10)


def test_options_are_taken_together_and_reach_the_estimator():
    plain = ["model.name=resnet20_1w1a", "estimator.name=reste"]
    model = instantiate(load_config(QUICKSTART, [*plain, "estimator.threshold=3", "estimator.knee=2"]), 10)
    [(_, layer), *_] = binary_layers(model)
    assert (layer.activation_estimator.threshold, layer.activation_estimator.knee) == (3.0, 2.0)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["estimator.threshold=0.05", "estimator.knee=0.1"], "estimator: "),
        (["estimator.name=dsq", 'estimator.options={alpha: "a"}'], "estimator: alpha must be a number, got 'a'"),
        (["estimator.name=dsq", 'estimator.options={learn: "no"}'], "estimator: learn must be true or false, got 'no'"),
        (["estimator.name=fda", "estimator.options={terms: 2.5}"], "estimator: terms must be a whole number, got 2.5"),
        (
            ["estimator.name=fda", "estimator.options={terms: true}"],
            "estimator: terms must be a whole number, got True",
        ),
        (["estimator.name=ede", "estimator.options={t_min: 1.0e-300}"], "estimator: t_min must be >= 1e-30"),
        (["estimator.weights=ste", "estimator.weights_options={threshold: x}"], "estimator.weights: threshold must be"),
        (["estimator.weights=stee"], "estimator.weights: unknown estimator 'stee'; did you mean 'ste'"),
        (["estimator.weights_options={threshold: 7}"], "estimator.weights_options are of estimator.weights"),
        (["estimator.options={threshold: 2}", "estimator.threshold=1"], "are both set: keep one"),
        (["estimator.options={power: 2}"], "the power of reste is a schedule: set estimator.o_end"),
        (
            ["estimator.name=ste", "estimator.hold_instability=1e-4"],
            "estimator.hold_instability steers a power, and ste",
        ),
        (["quantizer.weight=recu", "quantizer.options={recu: {tau_end: x}}"], "tau_end must be a number, got 'x'"),
        (["quantizer.weight=recu", "quantizer.options={recu: {channels: 3}}"], "no option 'channels'"),
        (
            ["quantizer.weight=recu", "quantizer.options={recuu: {}}"],
            "there is no quantiser 'recuu'; did you mean recu",
        ),
        (["quantizer.weight=nonsense", "model.weight_bits=32"], "unknown quantizer 'nonsense'"),
    ],
)
def test_an_option_of_a_method_that_cannot_be_meant_is_refused_in_one_line(overrides, says):
    plain = ["estimator.knee=null", "model.name=resnet20_1w1a", "log.indicators_every=10"]
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        instantiate(load_config(QUICKSTART, [*plain, *overrides]), 10)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_power_is_planned_and_may_be_steered_wherever_some_layer_has_one():
    made = ["data.loader=synthetic", "estimator.name=approx_sign", "log.indicators_every=10"]
    weights = [*made, "estimator.weights=reste", "estimator.hold_instability=1e-4"]
    assert "power" in dict(plan_rows(load_config(QUICKSTART, weights), 1))
    assert "power" not in dict(plan_rows(load_config(QUICKSTART, made), 1))


def test_options_of_a_quantiser_that_no_side_uses_are_told():
    sides = ["quantizer.weight=none", "quantizer.activation=none", "quantizer.options={recu: {tau_end: 0.9}}"]
    with pytest.warns(UserWarning, match=r"quantizer\.options\.recu has no effect"):
        instantiate(load_config(QUICKSTART, ["model.name=resnet20_1w1a", *sides]), 10)


@pytest.mark.parametrize("path", sorted((QUICKSTART.parent / "methods").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_graph_of_every_shipped_method_may_be_loaded(path):
    [case] = find_methods(path.parent, [path.stem])
    overrides = case.overrides
    config = load_config(QUICKSTART, overrides)
    if config.stages:  # what is exported is the last one's
        config = load_training(QUICKSTART, list(overrides)).stages[-1].config
    model = instantiate(config, 10).eval()
    with torch.no_grad():
        program = torch.export.export(model, (torch.zeros(2, 3, 16, 16),))
    called = {f"torch.ops.{node.target}" for node in program.graph.nodes if node.op == "call_function"}
    assert {name for name in called if "aten" in name} <= OPERATORS


def test_a_learnt_parameter_draws_no_random_number():
    for name in list_estimators():
        torch.manual_seed(0)
        create_estimator(name, **OPTIONS.get(name, {}))
        assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(0).get_state())


@pytest.mark.parametrize("name", ["heaviside", "ternary_duo", "reste_levels", "swish_sign"])
def test_a_network_without_estimators_computes_the_same_and_its_graph_may_be_loaded(name):
    torch.manual_seed(0)
    conv = Binarization(estimator=name, weight_estimator="ste" if name in NOT_FOR_WEIGHTS else None)
    model = torch.nn.Sequential(conv(3, 8, 1), torch.nn.BatchNorm2d(8), conv(8, 4, 2)).eval()
    for _, layer in binary_layers(model):
        torch.nn.init.normal_(layer.weight)  # the usual ones are too small for an inner threshold
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(freeze(model)(x), expected)
        program = torch.export.export(model, (x,))
        assert torch.equal(program.module()(x), expected)
    assert expected.std() > 0.1
    called = {f"torch.ops.{node.target}" for node in program.graph.nodes if node.op == "call_function"}
    assert called <= OPERATORS


def test_the_list_of_names_has_estimators_quantisers_and_scalings(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr("models.MODELS", ("resnet20_1w1a",))
    summary.print_names()
    words = set(capsys.readouterr().out.replace(",", " ").split())
    assert {*list_estimators(), *list_quantizers(), *list_scalings(), "resnet20_1w1a"} <= words
