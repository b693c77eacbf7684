"Bridges that start from a predicted mean and spread: the fit of both, draws, refusals."

import pytest
import torch
from xmodal.core import InputError
from xmodal.methods import calls, draw, get_method, methods, with_anchor
from xmodal.nets.anchor import Anchor, anchor_loss, anchored_row, build_anchored, spread_rules
from xmodal.rows import SceneSampling
from xmodal.spread import Anchored, Spread
from xmodal.tiles import Tiled
from xmodal.train import train_command

from small_model import copied

SMALL = dict(net=dict(ch=8, mults=[1], layers=1), anchor=dict(ch=8, mults=[1]))


class PerPixel(torch.nn.Module):
    "Mean and spread as functions of the source's pixel."

    def __init__(self):
        super().__init__()
        wide = torch.nn.Conv2d(1, 24, 1), torch.nn.Tanh(), torch.nn.Conv2d(24, 2, 1)
        self.net = torch.nn.Sequential(*wide)

    def forward(self, y):
        mu, raw = self.net(y).chunk(2, 1)
        return mu, 0.01 + torch.nn.functional.softplus(raw)


def pairs(n, seed):
    "Sources, targets, and the mean and spread that these were drawn with."
    gen = torch.Generator().manual_seed(seed)
    y = 2 * torch.rand(n, 1, 16, 16, generator=gen) - 1
    mu, sigma = 0.5 * y, 0.05 + 0.2 * (y + 1)
    return y, mu + sigma * torch.randn(y.shape, generator=gen), mu, sigma


@pytest.mark.parametrize('rule', spread_rules)
def test_the_fit_recovers_a_spread_that_depends_on_the_source(rule):
    torch.manual_seed(0)
    y, x0, mu, sigma = pairs(16, 1)
    net = PerPixel()
    opt = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(400):
        opt.zero_grad()
        anchor_loss(*net(y), x0, rule).mean().backward()
        opt.step()
    with torch.no_grad():
        off = [(got - want).abs().mean() for got, want in zip(net(y), (mu, sigma))]
    assert off[0] < 0.03 and off[1] < 0.03, off


@pytest.mark.parametrize('rule', spread_rules)
def test_the_rule_of_the_spread_cannot_move_the_mean(rule):
    "Its pull on the mean is that of squared error, in every pixel alike; unstopped it is not."
    _, x0, mu, sigma = pairs(2, 2)
    mean = torch.zeros_like(mu).requires_grad_()
    anchor_loss(mean, sigma, x0, rule).sum().backward()
    pull = mean.grad / (mean.detach() - x0)
    assert pull.std() < 1e-6 * pull.mean()
    free = torch.zeros_like(mu).requires_grad_()
    spread_rules[rule](free, sigma, x0).sum().backward()
    pull = free.grad / (free.detach() - x0)
    assert pull.std() > 0.1 * pull.mean()


@pytest.mark.parametrize('name', [*with_anchor, 'bbdm', 'cdtsde', 'abridge'])
def test_draws_start_from_the_anchor(name):
    "Another mean moves the start by as much; the anchor is asked once, and counted."
    torch.manual_seed(0)
    m, den = anchored_row(name), build_anchored(name, **SMALL).eval()
    y, asked = torch.randn(2, 1, 16, 16).tanh(), []
    den.anchor.register_forward_hook(lambda *a: asked.append(1))
    first = draw(m, den, y, 2)
    assert len(asked) == 1 and first.isfinite().all()
    assert calls(m, 2) == calls(m.__class__(m.about, m.bridge, **without(m)), 2) + 1
    held, mu = den.anchor.hold(den, y)
    assert isinstance(held, Anchored) and isinstance(held.bridge, Spread)
    c, inner = (b.coefs(0.5, mu)[2] for b in (held.bridge, den.bridge))
    assert torch.allclose(c, inner * held.bridge.sigma.double())
    with torch.no_grad():
        assert torch.equal(mu, den.anchor(y)[0])


def without(m):
    "Fields of a method, but for its anchor."
    return {k: v for k, v in vars(m).items() if k not in ('about', 'bridge', 'anchor')}


def test_tiles_and_weights():
    "A large picture in windows; and the anchor is a part of what is saved."
    den = build_anchored('residual', **SMALL).eval()
    y = torch.randn(1, 1, 24, 24).tanh()
    m = with_anchor['residual']
    assert draw(m, Tiled(den, 16), y).isfinite().all()
    assert torch.equal(draw(m, Tiled(den, 24), y), draw(m, den, y))
    other = build_anchored('residual', **SMALL)
    other.load_state_dict(den.state_dict())
    assert torch.equal(draw(m, other.eval(), y), draw(m, den, y))


def test_what_cannot_start_from_an_anchor_is_refused():
    den = build_anchored('residual', **SMALL)
    with pytest.raises(InputError, match='line by line'):
        SceneSampling(with_anchor['residual'], Tiled(den, 16), None, [0])
    with pytest.raises(InputError, match='slice by slice'):
        draw(with_anchor['residual'], den, torch.zeros(1, 1, 4, 8, 8))
    with pytest.raises(InputError, match='residual or i2sb'):
        build_anchored('pix2pix')
    with pytest.raises(ValueError, match='scalar'):
        Anchor(kind='scaler')


@pytest.mark.parametrize('name', with_anchor)
def test_no_command_takes_the_rows_yet(name, tmp_path):
    assert name not in methods
    with pytest.raises(InputError, match='trained with an anchor.*with_anchor') as e:
        get_method(name)
    assert '\n' not in str(e.value)
    if name == 'residual':
        words = ['--method', name, '--root', 'made']
        done = copied(lambda *w: train_command([*w]), *words, cwd=tmp_path)
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode and 'trained with an anchor' in last, done.stderr[-800:]
        assert not list(tmp_path.rglob('model'))
