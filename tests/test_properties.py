"Properties that must hold for any input, tried on many by hypothesis."

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from xmodal.data.split import split_subjects
from xmodal.data.volumes import from_plane, load_volume, to_plane
from xmodal.data.windows import Window
from xmodal.mixing import SpatialMix
from xmodal.bridge import CDTSDE
from xmodal.sample import markov, scaled, step, uniform, vp, zero

unit = st.floats(0.0, 1.0, allow_nan=False)
positive = st.floats(0.01, 2.0)


@settings(deadline=None, max_examples=200)
@given(unit, unit, positive, unit, unit, st.floats(0.0, 2.0), unit, unit)
def test_a_step_keeps_the_marginal(a_t, b_t, c_t, a_s, b_s, c_s, share, eta):
    """With the true x0, the state at s has mean a_s x0 + b_s y and variance c_s^2, for every tau
    and every rule.
    """
    one = lambda v: torch.tensor(v, dtype=torch.float64)
    at_t, at_s = tuple(map(one, (a_t, b_t, c_t))), tuple(map(one, (a_s, b_s, c_s)))
    x0, y, nil = one(0.7), one(-0.4), one(0.0)
    taus = [share * c_s] + [float(r(at_t, at_s)) for r in (zero, markov, scaled(markov, eta))]
    for tau in taus:
        mean = step(a_t * x0 + b_t * y, x0, y, at_t, at_s, tau, nil)
        # response to old noise
        old = step(a_t * x0 + b_t * y + c_t, x0, y, at_t, at_s, tau, nil) - mean
        # response to fresh noise
        new = step(a_t * x0 + b_t * y, x0, y, at_t, at_s, tau, one(1.0)) - mean
        assert abs(mean - (a_s * x0 + b_s * y)) < 1e-9
        assert abs(old**2 + new**2 - c_s**2) < 1e-9


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.lists(unit, min_size=2, max_size=2, unique=True),
    st.sampled_from(['logistic', 'none']),
)
def test_rules_on_random_fields(seed, times, squash):
    "0 <= tau_vp <= tau_markov <= c_s in every pixel when the field falls towards the target."
    s, t = sorted(times)
    torch.manual_seed(seed)
    mix = SpatialMix(1, squash=squash, monotone=True)
    torch.nn.init.normal_(mix.net[-1].weight, std=2.0)
    y = torch.zeros(1, 1, 6, 6)
    with torch.no_grad():
        at_t, at_s = (CDTSDE(mix).coefs(v, y) for v in (t, s))
    assert (
        (vp(at_t, at_s) >= 0).all()
        and (vp(at_t, at_s) <= markov(at_t, at_s) + 1e-9).all()
        and (markov(at_t, at_s) <= at_s[2] + 1e-12).all()
    )


axes48 = [
    np.array([[p[i], f[i]] for i in range(3)])
    for p in itertools.permutations(range(3))
    for f in itertools.product([1, -1], repeat=3)
]


@pytest.mark.parametrize(
    'axes', axes48, ids=lambda a: ''.join(f'{"+" if f > 0 else "-"}{i}' for i, f in a)
)
@settings(deadline=None, max_examples=8)
@given(
    st.tuples(*[st.integers(1, 14)] * 3),
    st.tuples(*[st.floats(-0.6, 0.6)] * 3) | st.just((0.0, 0.0, 0.0)),
    st.floats(0.4, 4.0),
    st.floats(0.4, 9.0),
    st.integers(0, 10**6),
)
def test_a_volume_returns_from_the_plane(axes, shape, angles, pixel, thickness, seed):
    """Each of the 48 orientations, oblique or not, odd sizes, one slice: with pixels of the voxels'
    size the way there and back is exact (float32 rounding of the intensity scale).
    """
    data = np.random.default_rng(seed).random(shape).astype(np.float32)
    if data.min() == data.max():
        return
    R = np.eye(3)
    for k, a in enumerate(angles):
        c, s = np.cos(a), np.sin(a)
        Q = np.eye(3)
        i, j = [(0, 1), (0, 2), (1, 2)][k]
        Q[i, i], Q[i, j], Q[j, i], Q[j, j] = c, -s, s, c
        R = R @ Q
    A = np.eye(4)
    A[:3, :3] = R * np.array([pixel, pixel, thickness])
    A[:3, 3] = 3, -20, 40
    img = nib.Nifti1Image(data, A).as_reoriented(axes)
    canonical = load_volume(img)
    spacing = float(np.sqrt((canonical.affine[:3, 0] ** 2).sum()))
    # pixels not square in this plane
    if not np.allclose(np.sqrt((canonical.affine[:3, :2] ** 2).sum(0)), spacing, rtol=1e-5):
        return
    planes, affine = to_plane(canonical, spacing, 16, Window(0.0, 1.0))
    np.testing.assert_allclose(
        Window(0.0, 1.0).unscale(from_plane(planes, affine, img)),
        np.asarray(img.dataobj),
        atol=2e-7,
    )


@settings(max_examples=100)
@given(
    st.floats(-1e4, 1e4),
    st.floats(0.1, 1e4),
    st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=20),
)
def test_windows_are_exact(lo, width, values):
    w, v = Window(lo, lo + width), np.array(values)
    np.testing.assert_allclose(w.unscale(w.scale(v)), v, rtol=1e-9, atol=1e-6)


@settings(max_examples=100)
@given(st.integers(2, 40), st.integers(0, 10**6), st.integers(0, 10**6))
def test_no_subject_on_two_sides(n, seed, order):
    names = [f's{i}' for i in range(n)]
    shuffled = [names[i] for i in np.random.default_rng(order).permutation(n)] * 2
    parts = split_subjects(shuffled, seed)
    assert (
        sorted(sum(parts.values(), [])) == sorted(names)
        and parts['train']
        and parts['test']
        and parts == split_subjects(names, seed)
    )
