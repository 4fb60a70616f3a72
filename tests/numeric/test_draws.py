"""Counter-based noise: uniform, independent, the same wherever it is drawn; random signs against their expectations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from reste import (
    BinaryConv2d,
    BinaryLinear,
    create_estimator,
    create_quantizer,
    ensemble,
    sample_mode,
    set_draws,
)
from reste.draws import key_of, mix, uniform

NOISES = ("uniform", "logistic", "triangular")


def word(x):
    """`mix` on one Python number."""
    x ^= x >> 16
    x = x * 0x21F0AAAD % 2**32
    x ^= x >> 15
    x = x * 0x735A2D97 % 2**32
    return x ^ x >> 15


def number(key, row, element):
    """One number of `uniform`, in Python integers."""
    first = word(word(word(row % 2**32 ^ key % 2**32) ^ row >> 32) ^ key >> 32)
    second = word(first ^ 0x03707344 ^ key >> 32)
    return ((word(word(element ^ first) ^ second) >> 9) + 0.5) / 2**23


def drawn(key, rows, *shape):
    return uniform(torch.tensor(key), torch.as_tensor(rows), torch.Size(shape))


def test_words_are_those_of_python_integers_and_mixing_loses_none():
    words = torch.randint(0, 2**32, (1000,), generator=torch.Generator().manual_seed(0))
    assert mix(words).tolist() == [word(value) for value in words.tolist()]
    few = torch.arange(2**16) * 65537 % 2**32
    assert len(mix(few).unique()) == len(few)


def test_numbers_are_those_of_python_integers():
    key, rows = key_of(7, 3, 1), [0, 5, 2**32 - 1, 2**40 + 3]
    found = drawn(key, rows, 4, 2, 3)
    expected = [[number(key, row, element) for element in range(6)] for row in rows]
    assert found.flatten(1).tolist() == expected
    assert found.min() > 0
    assert found.max() < 1


def test_keys_of_different_places_differ():
    keys = {
        key_of(seed, step, layer, side)
        for seed in range(5)
        for step in range(50)
        for layer in (0, 9)
        for side in (0, 1)
    }
    assert len(keys) == 5 * 50 * 4
    assert len({key_of(), key_of(0), key_of(0, 0), key_of(1), key_of(-1), key_of(2**32), key_of(2**63)}) == 7
    assert all(0 <= key < 2**62 for key in keys)


@pytest.mark.parametrize(
    ("rows", "count", "keys"), [(1, 2**17, 1), (2**17, 1, 1), (2**6, 2**6, 2**5)], ids=["elements", "rows", "steps"]
)
def test_numbers_are_uniform_and_neighbours_are_independent(rows, count, keys):
    """Chi-square over 64 bins, and over 16 x 16 bins of each number with its neighbour; limits of five deviations."""
    parts = [drawn(key_of(1, step, 0), range(rows), rows, count).numpy() for step in range(keys)]
    values = np.concatenate([part.reshape(-1) for part in parts])
    n = len(values)
    for bins, observed in (
        (64, np.bincount((values * 64).astype(int), minlength=64)),
        (256, np.bincount((values[::2] * 16).astype(int) * 16 + (values[1::2] * 16).astype(int), minlength=256)),
    ):
        expected = observed.sum() / bins
        chi_square = ((observed - expected) ** 2 / expected).sum()
        assert abs(chi_square - (bins - 1)) < 5 * math.sqrt(2 * (bins - 1))
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / math.sqrt(n)


def test_streams_of_neighbouring_rows_and_steps_are_uncorrelated():
    rows = drawn(key_of(1, 0, 0), range(40), 40, 4000).numpy()
    steps = np.stack([drawn(key_of(1, step, 0), [3], 1, 4000).numpy()[0] for step in range(40)])
    for table in (rows, steps):
        off_diagonal = np.corrcoef(table)[~np.eye(40, dtype=bool)]
        assert np.abs(off_diagonal).max() < 5 / math.sqrt(4000)


def test_a_sample_has_its_noise_in_any_batch_and_any_layout():
    ids = torch.tensor([11, 4, 900, 3])
    whole = uniform(torch.tensor(5), ids, torch.Size((4, 3, 2, 2)))
    assert torch.equal(uniform(torch.tensor(5), ids[2:], torch.Size((2, 3, 2, 2))), whole[2:])
    assert uniform(torch.tensor(5), ids[:0], torch.Size((0, 3, 2, 2))).shape == (0, 3, 2, 2)


def chance(noise, a):
    """P(z <= a) from the definition of the noise, for one number."""
    if noise == "logistic":
        return 1 / (1 + math.exp(-a))
    if noise == "uniform":
        return min(max((a + 1) / 2, 0), 1)
    inside = min(max(a, -1), 1)
    return (1 + inside) ** 2 / 2 if inside < 0 else 1 - (1 - inside) ** 2 / 2


def density(noise, a):
    if noise == "logistic":
        return math.exp(-a) / (1 + math.exp(-a)) ** 2
    return (0.5 if noise == "uniform" else 1 - abs(a)) if abs(a) <= 1 else 0.0


POINTS = (-1.7, -0.8, -0.3, 0.0, 0.45, 0.9, 1.2)


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("noise", NOISES)
def test_a_random_sign_has_the_chance_of_its_noise(noise, scale):
    draws = 20_000
    quantizer = create_quantizer("stochastic", 1, noise=noise, scale=scale)
    for value in POINTS:
        signs = create_estimator("identity")(quantizer(torch.full((1, draws), value * scale)))
        p = chance(noise, value)
        share = (signs > 0).double().mean().item()
        assert share == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / draws) + 1e-6)


@pytest.mark.parametrize("noise", NOISES)
def test_the_straight_through_factor_is_the_derivative_of_the_expectation(noise):
    """Twice the density; by the noise's definition, and by a difference of expectations drawn with the same noise."""
    draws, h = 60_000, 0.1
    quantizer, sign = create_quantizer("stochastic", 1, noise=noise), create_estimator("identity")
    for value in POINTS:
        x = torch.full((1, 1), value, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(sign(quantizer(x)), x)
        assert found.item() == pytest.approx(2 * density(noise, value), abs=1e-12)
        ends = [sign(quantizer(torch.full((1, draws), value + d))).double() for d in (h, -h)]
        changes = (ends[0] - ends[1]) / (2 * h)
        error = changes.std().item() / math.sqrt(draws)
        chances = 2 * (chance(noise, value + h) - chance(noise, value - h)) / (2 * h)
        assert changes.mean().item() == pytest.approx(chances, abs=5 * error + 1e-6)


def test_mirror_descent_draws_the_same_sign_and_passes_the_gradient_as_it_is():
    x = torch.randn(4, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    plain, mirror = create_quantizer("stochastic", 4), create_quantizer("stochastic_mirror", 4)
    assert torch.equal(plain(x), mirror(x))
    assert torch.equal(torch.autograd.grad(mirror(x), x, torch.ones_like(x))[0], torch.ones_like(x))


@pytest.mark.parametrize("name", ["stochastic", "stochastic_mirror"])
def test_in_eval_mode_the_sign_is_the_plain_one_unless_draws_are_asked_for(name):
    x = torch.tensor([[-2.0, -1e-20, -0.0, 0.0, 1e-20, 0.3, 5.0]]).expand(3, 7)
    quantizer = create_quantizer(name, 3).eval()
    assert torch.equal(quantizer(x) < 0, x < 0)
    with sample_mode(quantizer):
        assert not torch.equal(quantizer(x) < 0, x < 0)
        with sample_mode(quantizer, False):
            assert torch.equal(quantizer(x) < 0, x < 0)
    assert torch.equal(quantizer(x) < 0, x < 0)


@pytest.mark.parametrize("given", [{"noise": "normal"}, {"scale": 0.0}, {"scale": math.inf}])
def test_options_out_of_range_are_refused(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        create_quantizer("stochastic", 1, **given)


def stochastic_net():
    def parts(outputs, inputs):
        return {
            "weight_estimator": create_estimator("identity"),
            "activation_estimator": create_estimator("identity"),
            "weight_quantizer": create_quantizer("stochastic_mirror", outputs),
            "activation_quantizer": create_quantizer("stochastic", inputs, noise="triangular"),
            "scaling": "none",
        }

    torch.manual_seed(0)
    return torch.nn.Sequential(
        BinaryConv2d(3, 4, 3, **parts(4, 3)), torch.nn.Flatten(), BinaryLinear(64, 5, **parts(5, 64))
    ).double()


def images(count=6):
    return torch.randn(count, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def at(net, step, ids, x, seed=1):
    set_draws(net, seed=seed, step=step, samples=torch.as_tensor(ids))
    return net(x)


def test_noise_belongs_to_seed_step_and_sample_and_to_nothing_else():
    net, x = stochastic_net(), images()
    ids = [8, 1, 77, 30, 2, 5]
    whole = at(net, 4, ids, x)
    assert torch.equal(torch.cat([at(net, 4, ids[:2], x[:2]), at(net, 4, ids[2:], x[2:])]), whole)
    assert not torch.equal(at(net, 5, ids, x), whole)
    assert not torch.equal(at(net, 4, ids, x, seed=2), whole)
    assert not torch.equal(at(net, 4, ids[::-1], x), whole)
    same_image = at(net, 4, ids, x[:1].expand_as(x))
    assert len(same_image.unique(dim=0)) == len(x)
    torch.manual_seed(99)
    assert torch.equal(at(net, 4, ids, x), whole)


def test_weights_are_drawn_once_for_all_samples_of_a_step():
    net, x = stochastic_net()[0], images()
    net.activation_quantizer = None
    same = at(net, 0, range(6), x[:1].expand_as(x))
    assert len(same.unique(dim=0)) == 1
    assert not torch.equal(at(net, 1, range(6), x), at(net, 0, range(6), x))


def test_a_batch_of_another_size_than_was_said_is_refused():
    net = stochastic_net()
    assert net(images()).shape == (6, 5)
    set_draws(net, seed=0, step=0, samples=torch.arange(6))
    with pytest.raises(ValueError, match=r"noise was set for 6 samples, here are 2: call reste\.set_draws"):
        net(images()[:2])


def test_an_ensemble_is_the_mean_over_its_draws_and_leaves_no_trace():
    net, x = stochastic_net().eval(), images()
    plain = net(x)
    members = []
    with sample_mode(net):
        for step in range(3):
            members.append(at(net, step, range(6), x, seed=9).softmax(-1))
    set_draws(net, seed=9, step=0, samples=torch.arange(4))
    found = ensemble(net, x, members=3, seed=9)
    torch.testing.assert_close(found, sum(members) / 3)
    torch.testing.assert_close(found.sum(-1), torch.ones(6, dtype=torch.float64))
    assert torch.equal(net(x), plain)
    assert len(net.train()(x[:4])) == 4, "what was said before it holds again"
    with pytest.raises(ValueError, match="members"):
        ensemble(net, x, members=0, seed=9)


def test_one_graph_serves_all_steps_and_batches_and_draws_what_eager_mode_draws():
    torch._dynamo.reset()
    net, x = stochastic_net(), images()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    for step in range(4):
        ids = torch.arange(6) * 7 + step
        set_draws(net, seed=1, step=step, samples=ids)
        found = []
        for module in (net, compiled):
            net.zero_grad()
            module(x).square().sum().backward()
            found.append([parameter.grad.clone() for parameter in net.parameters()])
        for eager, graph in zip(*found, strict=True):
            torch.testing.assert_close(graph, eager)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.slow
def test_generated_code_draws_the_same_numbers_and_is_generated_in_time():
    """Expressions put into each other would be written out so often that the compiler did not come back."""
    torch._dynamo.reset()
    rows, key = torch.tensor([3, 2**40 + 1, 2**32 - 1, 0]), torch.tensor(key_of(1, 2, 3))
    shape = torch.Size((4, 3, 17, 5))
    compiled = torch.compile(lambda key, rows: uniform(key, rows, shape), fullgraph=True)
    assert torch.equal(compiled(key, rows), uniform(key, rows, shape))
    torch._dynamo.reset()


def test_noise_is_in_no_state_dict_and_survives_casts():
    net = stochastic_net()
    assert not [name for name in net.state_dict() if "quantizer" in name]
    set_draws(net, seed=1, step=2, samples=torch.arange(6))
    before = net[0].activation_quantizer.key.clone()
    assert torch.equal(net.half()[0].activation_quantizer.key, before)


def test_the_numbers_of_a_batch_lie_where_they_lay_before_a_smaller_one():
    """What replays a CUDA graph knows addresses, not tensors."""
    net = stochastic_net()
    places = []
    for count in (6, 2, 6):
        set_draws(net, seed=1, step=count, samples=torch.arange(count) + 3)
        rows = net[0].activation_quantizer.rows
        assert rows.tolist() == list(range(3, 3 + count))
        places.append(rows.data_ptr())
    assert places[0] == places[2] != places[1]
