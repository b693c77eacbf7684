"Rows that draw in one call: what their losses ask, and that a draw hangs on its seed alone."

import pytest
import torch
from xmodal.core import InputError
from xmodal.denoise import Network, draws_of, losses
from xmodal.methods import calls, draw, get_method, most_steps
from xmodal.nets.anchor import anchored_row, build_anchored
from xmodal.nets.build import build
from xmodal.tiles import Tiled
from xmodal.training.loop import Recipe, doubled, train

SMALL = dict(ch=8, mults=[1, 2], layers=1)
ROWS = [('ensemble', 'image'), ('ensemble', 'z'), ('energy', 'both')]


def denoiser(row, noise):
    torch.manual_seed(0)
    return build(row, net=SMALL, bridge=dict(noise=noise)).eval()


@pytest.mark.parametrize('row, noise', ROWS)
def test_a_draw_hangs_on_its_seed_alone(row, noise):
    "Not on its company in the batch; another seed is another draw; one call."
    den, y = denoiser(row, noise), torch.randn(3, 1, 16, 16)
    together = draw(row, den, y, seeds=[5, 6, 7])
    alone = torch.cat([draw(row, den, y[k : k + 1], seeds=[5 + k]) for k in range(3)])
    assert torch.allclose(together, alone, atol=2e-6)  # the order of sums in a convolution
    assert (draw(row, den, y, seeds=[5, 6, 8])[2] - together[2]).abs().max() > 1e-4
    assert calls(row, 1) == 1


class OfPixels(torch.nn.Module):
    "A network of single pixels, so that tiles must change nothing."

    latent = 0

    def forward(self, x, t, y, ctx=None, side=None):
        return x + 2 * y


def test_tiles_share_one_noise():
    den = denoiser('ensemble', 'image')
    den.net, y = OfPixels(), torch.randn(1, 1, 24, 20)
    whole = draw('ensemble', den, y, seeds=3)
    assert torch.allclose(draw('ensemble', Tiled(den, 8), y, seeds=3), whole, atol=1e-5)


class OfVector(Network):
    "A network that answers with the mean of its vector everywhere."

    latent = 4

    def forward(self, x, t, y, ctx=None, side=None, z=None):
        return 0 * x + z.mean(1).reshape(-1, 1, 1, 1)


def test_tiles_share_one_vector():
    den, y = denoiser('ensemble', 'z'), torch.randn(1, 1, 24, 20)
    den.net = OfVector()
    got = draw('ensemble', Tiled(den, 8), y, seeds=3)
    assert got.std() < 1e-6 < abs(float(got.mean()))


@pytest.mark.parametrize('row', ['ensemble', 'energy'])
def test_the_loss_prefers_the_true_spread(row):
    "Two draws of the truth score better than two that are alike, or twice as wide."
    g = torch.Generator().manual_seed(0)
    truth, first, second = torch.randn(3, 64, 1, 16, 16, generator=g)
    score = lambda f, again: float(
        losses[row](torch.cat([f * first, f * again]), torch.cat([truth, truth])).mean()
    )
    honest = score(1.0, second)
    assert honest < score(1.0, first) and honest < score(2.0, second) < score(4.0, second)


def test_a_batch_is_doubled_with_noise_of_its_own():
    b = dict(y=torch.arange(3.0), noise=torch.tensor([4, 5, 6]))
    twice = doubled(b, 2)
    assert twice['y'].tolist() == [0, 1, 2, 0, 1, 2] and len(set(twice['noise'].tolist())) == 6
    assert doubled(b, 1) is b
    assert {k for k, n in draws_of.items() if n == 2} == {'ensemble', 'energy'}


class Weighs(Network):
    "A weight for the noise and one for the source."

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.tensor([0.1, 0.0]))

    def forward(self, x, t, y, ctx=None, side=None):
        return self.weights[0] * x + self.weights[1] * y


@pytest.mark.parametrize('row', ['ensemble', 'energy'])
def test_a_training_finds_the_spread(row, tmp_path):
    "The target is half of the source plus noise of 0.4; the mean absolute error would have none."
    g = torch.Generator().manual_seed(0)
    y = torch.randn(32, 1, 16, 16, generator=g).tanh()
    data = [dict(y=v, x0=v / 2 + 0.4 * torch.randn(v.shape, generator=g)) for v in y]
    den = denoiser(row, 'image')
    den.net = Weighs()
    how = dict(device='cpu', progress=False, log_every=60)
    train(den, data, tmp_path, row, Recipe(steps=60, batch=8, lr=3e-2), {}, **how)
    noise, source = den.net.weights.abs().tolist()
    assert noise == pytest.approx(0.4, abs=0.05) and source == pytest.approx(0.5, abs=0.05)


def test_on_an_anchor_the_noise_lies_around_the_mean():
    "mu + sigma F: with an answer of 0 a draw is the mean, with the noise itself a pixelwise Gaussian."
    m = anchored_row('ensemble')
    small = dict(ch=8, mults=(1, 2), layers=1)
    den = build_anchored('ensemble-spread', net=small, anchor=small).eval()
    y = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        mu, sigma = den.anchor(y)
    den.net.forward = lambda x, *a, **kw: 0 * x
    assert torch.allclose(draw(m, den, y), mu, atol=1e-6)
    den.net.forward = lambda x, t, mean, *a, side=None, **kw: (x - mean) / side[:, 1:]
    off = (draw(m, den, y, seeds=4) - mu) / sigma
    assert 0.8 < float(off.std()) < 1.2


def test_refusals():
    with pytest.raises(InputError, match="noise must be 'image'"):
        build('ensemble', net=SMALL, bridge=dict(noise='none'))
    with pytest.raises(InputError, match='noise=image'):
        build('ensemble', bridge=dict(noise='z'), arch='unet3d')
    with pytest.raises(InputError, match='one step'):
        anchored_row('regression')
    assert get_method('energy').loss == 'energy'


@pytest.mark.parametrize('method', ['energy', 'ensemble', 'energy-mean', 'regression', 'syndiff'])
def test_more_steps_than_a_network_has_times_are_refused(method):
    "In training, where a model is told, and where a model is asked."
    from types import SimpleNamespace

    from xmodal.train import Job, plan
    from xmodal.translate import sampling

    most = int(most_steps(get_method(method)))
    data = SimpleNamespace(steps=None, tau=None, options={}, grids={})
    opened = SimpleNamespace(data=data, model=SimpleNamespace(method=method))
    with pytest.raises(InputError, match=f'steps {most + 1}: {method} .* give {most} at most'):
        sampling(opened, most + 1)
    with pytest.raises(InputError, match='at most, or leave it out'):
        sampling(opened, torch.linspace(1, 0, most + 2).tolist())
    with pytest.raises(InputError, match='at most, or leave it out'):
        plan(Job(name='not-there', method=method, sample_steps=most + 1))
