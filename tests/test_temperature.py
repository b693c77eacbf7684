"One knob for the spread of draws, the same in every row, in memory and by rows of tiles."

import pytest
import torch
from torch import nn
from xmodal.core import InputError, Noise
from xmodal.methods import draw, split_options
from xmodal.nets.anchor import build_anchored
from xmodal.rows import PlaceNoise, SceneSampling
from xmodal.tiles import Tiled

SMALL = dict(ch=8, mults=[1, 2], layers=1)


def denoiser(row):
    "A small network with weights that are not zero."
    torch.manual_seed(0)
    den = build_anchored(row, net=SMALL).eval()
    for p in den.net.parameters():
        nn.init.normal_(p, std=0.1)
    return den


@pytest.mark.parametrize('row', ['i2sb', 'bbdm', 'residual', 'ensemble', 'cdtsde'])
def test_without_noise_all_draws_are_one(row):
    den, y = denoiser(row), torch.rand(1, 1, 16, 16) * 2 - 1
    cold, other = (draw(row, den, y, seeds=s, temperature=0) for s in (1, 2))
    assert torch.equal(cold, other)
    warm, other = (draw(row, den, y, seeds=s) for s in (1, 2))
    assert not torch.allclose(warm, other)
    assert torch.equal(draw(row, den, y, seeds=1, temperature=1), warm)


class Scaled(Noise):
    "Noise that is half as large by itself."

    def __call__(self, like):
        return 0.5 * super().__call__(like)


def test_it_is_a_factor_of_the_noise():
    den, y = denoiser('i2sb'), torch.rand(2, 1, 16, 16) * 2 - 1
    half = draw('i2sb', den, y, seeds=[3, 4], temperature=0.5)
    assert torch.equal(half, draw('i2sb', den, y, seeds=Scaled([3, 4])))
    shared = draw('i2sb', den, y, seeds=Noise([3, 4]), temperature=0.5)
    assert torch.equal(half, shared)


class Held:
    "A picture in memory that is given out line by line."

    def __init__(self, y):
        self.y, self.sides = y, tuple(y.shape[2:])

    def lines(self, first, stop):
        return self.y[:, :, first:stop], None


def test_scenes_by_rows_know_it():
    den, y = denoiser('bbdm'), torch.rand(1, 1, 90, 70) * 2 - 1
    tiled, how = Tiled(den, 32, batch=1), dict(steps=3, temperature=0.5)
    whole = draw('bbdm', tiled, y, seeds=PlaceNoise([5]), **how)
    strips = SceneSampling('bbdm', tiled, Held(y), [5], **how).answers()
    assert torch.equal(torch.cat([v for _, v in strips], 2), whole)
    warm = draw('bbdm', tiled, y, steps=3, seeds=PlaceNoise([5]))
    assert not torch.allclose(warm, whole)


def test_what_is_no_temperature_is_refused():
    assert split_options('i2sb', dict(temperature=0.5)) == (dict(temperature=0.5), {})
    for wrong in (-1, 'hot', True, float('inf')):
        with pytest.raises(InputError, match='temperature'):
            split_options('i2sb', dict(temperature=wrong))
