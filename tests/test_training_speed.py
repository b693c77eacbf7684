"Fewer launches and messages in training, and the same numbers."

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from xmodal.bridge import Table
from xmodal.core import mend_torchvision
from xmodal.denoise import Parametrised, constant_factors, loss_per_item, predictions
from xmodal.mixing import position_encoding
from xmodal.nets.build import build
from xmodal.testing import Launches
from xmodal.training import loop
from xmodal.training.adversarial import average_gradients
from xmodal.training.loop import Recipe, make_ema, pack_optimizer, unpack_optimizer


class Two:
    "Two processes, the other with gradients three times as large; counts the messages."

    num_processes, sent = 2, 0

    def reduce(self, x, how):
        self.sent += 1
        return 2 * x


def test_gradients_of_players_travel_in_one_message():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 1, 3), nn.Linear(3, 3))
    net[:2](torch.ones(1, 1, 8, 8)).sum().backward()  # the last has no gradient
    before = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    acc = Two()
    average_gradients(acc, list(net.parameters()))
    assert acc.sent == 1
    for p, g in zip(net.parameters(), before):
        assert (g is None and p.grad is None) or torch.equal(p.grad, 2 * g)
    alone = SimpleNamespace(num_processes=1)
    average_gradients(alone, list(net.parameters()))


@pytest.mark.parametrize('old, new', [(False, True), (True, False)])
def test_a_checkpoint_continues_with_and_without_a_fused_optimiser(old, new):
    def step(net, opt):
        opt.zero_grad()
        (net(torch.ones(2, 3)) - 1).square().sum().backward()
        opt.step()

    def begin(fused):
        torch.manual_seed(0)
        net = nn.Linear(3, 2)
        return net, torch.optim.AdamW(net.parameters(), lr=0.1, fused=fused)

    (first, one), (second, two) = begin(old), begin(new)
    for _ in range(3):
        step(first, one)
    second.load_state_dict(first.state_dict())
    saved = {k: v.clone() for k, v in pack_optimizer(one).items()}
    unpack_optimizer(two, saved)
    assert bool(two.param_groups[0]['fused']) == new
    step(first, one)
    step(second, two)
    torch.testing.assert_close(second.weight, first.weight)


def test_the_average_over_all_parameters_at_once_is_that_of_diffusers():
    mend_torchvision()
    from diffusers.training_utils import EMAModel

    found = []
    for make in (
        lambda net: make_ema(net, Recipe(ema=0.9)),
        lambda net: EMAModel(net.parameters(), 0.9),
    ):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        ema = make(net)
        for _ in range(4):
            for p in net.parameters():
                p.data.add_(torch.randn_like(p))
            ema.step(loop.trainable(net))
        found.append(ema.shadow_params)
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_tables_are_looked_up_together_with_the_numbers_of_each():
    rows, t = torch.rand(3, 9, dtype=torch.float64), torch.rand(4, 1, 1, 1, dtype=torch.float64)
    each = [Table(row) for row in rows]
    together = Table(rows)
    assert all(torch.equal(got, one(t)) for got, one in zip(together(t), each))
    with Launches() as alone:
        each[0](t)
    with Launches() as at_once:
        together(t)
    assert at_once.total == alone.total


@pytest.mark.parametrize('h, w', [(1, 1), (7, 5), (33, 64), (129, 300)])
def test_the_position_code_from_two_lines_is_that_of_every_pixel(h, w):
    x = torch.linspace(-1, 1, w).expand(h, w) * torch.pi
    y = torch.linspace(-1, 1, h)[:, None].expand(h, w) * torch.pi
    wanted = torch.stack([x.sin(), x.cos(), y.sin(), y.cos()])
    assert torch.equal(position_encoding(h, w), wanted)
    with Launches() as again:
        position_encoding(h, w)
    assert again.counts['sin'] == again.counts['linspace'] == 0


def test_a_step_makes_the_factors_once(monkeypatch):
    constant_factors('i2sb')  # asks too, once for all
    asked, usual = [], predictions['i2sb']
    monkeypatch.setitem(predictions, 'i2sb', lambda *a: asked.append(1) or usual(*a))
    den = build('i2sb', 1, dict(ch=8, mults=(1,), layers=1))
    assert isinstance(den, Parametrised) and den.pred == 'i2sb'
    x0, y, eps = torch.randn(3, 2, 1, 8, 8)
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    for k in range(2):  # anew in the second step
        loss_per_item(den, x0, y, t, eps, weight='net')
        assert len(asked) == k + 1
