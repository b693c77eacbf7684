"""What the sampler and a network in use cost, in launches, waits and bytes; nothing is timed."""

import ctypes
import pickle
import platform
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from xmodal import bridge, denoise
from xmodal.bridge import VP, Brownian
from xmodal.core import Noise
from xmodal.denoise import Denoiser, Network, fast, keep_memory, run_net
from xmodal.methods import draw, methods
from xmodal.mixing import SpatialMix, axis_waves, position_encoding
from xmodal.nets.anchor import build_anchored as build
from xmodal.sample import sample, uniform, weighted_sum
from xmodal.testing import Launches
from xmodal.tiles import window_shares

SMALL = dict(
    unet=dict(ch=8, mults=[1, 2], layers=1),
    unet256=dict(ch=8, levels=4, dropout=0.0),
    dtfnet=dict(ch=4),
    ncsnpp=dict(ch=8, mults=[1, 2], layers=1, latent=4),
)


class Echo(Network):
    "Answers with its state, and notes how many images it was asked about."

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, x, t, y, ctx=None, **more):
        self.asked.append(len(x))
        return x


def around_nothing(method):
    "The denoiser of a method whose network does nothing."
    den = build(method, 1, SMALL[methods[method].net]).eval()
    den.net = Echo()
    if den.twin is not None:
        den.twin = Echo()
    return den


def counted(f):
    "What is launched by `f` once it has been called before."
    f()
    with Launches() as seen:
        f()
    return seen


@pytest.mark.parametrize('method', ['cdtsde', 'cdtsde_linear', 'i2sb', 'bbdm', 'dossr', 'flow'])
def test_five_steps_launch_little(method):
    den, y = around_nothing(method), torch.randn(1, 1, 16, 16)
    seen = counted(lambda: draw(method, den, y, steps=5, seeds=[3]))
    assert seen.total <= 60, seen.counts
    assert seen.waits == 0


@pytest.mark.parametrize('most', [2**22, 600])  # 600 values: the field about two times at once
def test_a_field_is_asked_about_many_times_at_once(method_field, most, monkeypatch):
    den, y = method_field
    monkeypatch.setattr(bridge, 'MOST_VALUES', most)
    grid = uniform(5)
    with torch.no_grad(), Launches() as each:
        one = den.bridge.table(grid, y)
    monkeypatch.setattr(bridge, 'many_at_once', lambda y: True)
    den.bridge.kept = None
    with torch.no_grad(), Launches() as together:
        many = den.bridge.table(grid, y)
    for a, b in zip(one, many, strict=True):
        for v, w in zip(a, b, strict=True):
            torch.testing.assert_close(v.expand(w.shape), w, rtol=0, atol=1e-6)
    assert together.total < each.total / (2 if most > 600 else 1.2)
    with torch.no_grad():
        assert draw('cdtsde', den, y, steps=5, seeds=[3, 4]).shape == y.shape


@pytest.fixture
def method_field():
    "A CDTSDE whose field is no longer the base step, and a batch for it."
    torch.manual_seed(0)
    den = around_nothing('cdtsde')
    torch.nn.init.normal_(den.bridge.mix.net[-1].weight, std=0.3)
    return den, torch.randn(2, 1, 16, 16)


@pytest.mark.parametrize('method', sorted(methods))
def test_no_sampler_waits_for_the_device(method):
    den, y = around_nothing(method), torch.randn(2, 1, 16, 16)
    steps = min(4, methods[method].steps)
    seen = counted(lambda: draw(method, den, y, steps=steps, seeds=[3, 4]))
    assert seen.waits == 0, seen.counts


def test_slices_of_a_volume_share_one_draw():
    den, y = around_nothing('bbdm'), torch.randn(8, 1, 16, 16)
    shared = counted(lambda: draw('bbdm', den, y, steps=5, seeds=[3] * 8))
    own = counted(lambda: draw('bbdm', den, y, steps=5, seeds=range(8)))
    assert shared.counts['randn'] == 4 and shared.total <= 60
    assert own.counts['normal_'] == 8 * 4
    together = draw('bbdm', den, y, steps=5, seeds=[3, 9, 3, 3, 9, 3, 3, 9])
    alone = draw('bbdm', den, y[4:5], steps=5, seeds=[9])
    assert torch.equal(together[4:5], alone)


def test_no_noise_is_drawn_where_none_is_wanted():
    y, drawn = torch.randn(1, 1, 8, 8), Noise([5])
    den = Denoiser(Echo(), Brownian(), 'grad').eval()
    rule = lambda at_t, at_s: torch.zeros_like(at_s[2])
    # the path starts without noise, so that its first step boots; then none is wanted any more
    seen = counted(lambda: sample(den, y, uniform(4), rule, seeds=[5], x=y))
    assert seen.counts['randn'] == 1
    # another may go on with a source of noise that was handed in: it is where it always was
    sample(den, y, uniform(4), rule, seeds=drawn, x=y)
    again = Noise([5])
    for _ in range(3):
        again(y)
    assert torch.equal(drawn(y), again(y))


def test_a_sum_is_the_formula():
    x, y, z = torch.randn(3, 2, 1, 9, 9)
    k, q = torch.rand(()), torch.rand(1, 1, 9, 9)
    with torch.no_grad():
        kept = x.clone()
        assert torch.equal(weighted_sum((1.0, x), (k, y), (q, z)), x + k * y + q * z)
        assert torch.equal(weighted_sum((0.0, None), (k, y), (-1.0, z)), k * y - z)
        assert torch.equal(
            weighted_sum((k, x), (1.0, y), (q.double(), z)), k * x + y + q.double() * z
        )
        assert torch.equal(x, kept)
    k.requires_grad_()
    weighted_sum((k, x), (k, y)).sum().backward()
    assert torch.isclose(k.grad, (x + y).sum())


@pytest.mark.parametrize('method', ['bbdm', 'selfrdb', 'syndiff', 'pix2pix', 'dtfnet'])
def test_weights_rounded_once_answer_as_automatic_casting(method):
    torch.manual_seed(0)
    arch = 'ncsnpp' if method == 'syndiff' else methods[method].net
    den = build(method, 1, SMALL[arch], arch=arch).eval()
    x, y, t = torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16), torch.tensor([500.0, 300.0])
    more = dict(z=torch.randn(2, den.latent)) if den.latent else {}
    more |= dict(x_r=torch.zeros_like(x)) if den.recur > 1 else {}
    with torch.no_grad():
        cast = run_net('bf16', den.net, x, t, y, None, more)
        with Launches() as before:
            run_net('bf16', den.net, x, t, y, None, more)
        fast(den, 'bf16')
        den.net.to(memory_format=torch.contiguous_format)  # as the other one was
        assert torch.equal(run_net('bf16', den.net, x, t, y, None, more), cast)
        with Launches() as after:
            run_net('bf16', den.net, x, t, y, None, more)
    assert after.counts['_to_copy'] < before.counts['_to_copy']


def test_a_compiled_network_is_asked_about_full_batches(monkeypatch):
    monkeypatch.setattr(torch.nn.Module, 'compile', lambda *a, **k: None)
    y = torch.randn(5, 1, 8, 8)
    den = around_nothing('bbdm')
    plain = [draw('bbdm', den, v, steps=3, seeds=[7] * len(v)) for v in (y[:3], y[3:])]
    fast(den, compile=True).net.asked.clear()
    full = [draw('bbdm', den, v, steps=3, seeds=[7] * len(v)) for v in (y[:3], y[3:])]
    assert set(den.net.asked) == {3}
    assert all(torch.equal(a, b) for a, b in zip(plain, full))


def test_memory_is_kept_once_and_only_by_glibc(monkeypatch):
    assert keep_memory() == (platform.libc_ver()[0] == 'glibc')
    monkeypatch.setenv('MALLOC_TRIM_THRESHOLD_', '0')
    assert not keep_memory.__wrapped__()
    monkeypatch.delenv('MALLOC_TRIM_THRESHOLD_')
    monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
    assert not keep_memory.__wrapped__()


@pytest.mark.parametrize('most', [160, 32, 16])  # MB: what glibc takes; older ones take 32
def test_the_end_of_memory_is_left_alone_where_blocks_are_refused(monkeypatch, most):
    asked = []

    def mallopt(name, n):
        asked.append(name)
        return int(name == denoise.TRIM_THRESHOLD or n <= most * 2**20)

    monkeypatch.setattr(ctypes, 'CDLL', lambda _: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr(platform, 'libc_ver', lambda: ('glibc', '2.31'))
    for name in TOLD:
        monkeypatch.delenv(name, raising=False)
    assert keep_memory.__wrapped__() == (most >= 32)
    tries = [denoise.MMAP_THRESHOLD] * (1 if most >= 160 else 2)
    assert asked == tries + [denoise.TRIM_THRESHOLD] * (most >= 32)


TOLD = dict(
    MALLOC_MMAP_THRESHOLD_='1',
    MALLOC_TRIM_THRESHOLD_='0',
    MALLOC_TOP_PAD_='0',
    MALLOC_MMAP_MAX_='0',
    GLIBC_TUNABLES='glibc.malloc.mmap_max=0',
)
OF_OTHER_THINGS = dict(MALLOC_ARENA_MAX='2', MALLOC_CHECK_='0', GLIBC_TUNABLES='glibc.rtld.nns=2')


def test_only_variables_about_freed_memory_are_heeded(monkeypatch):
    taken = SimpleNamespace(mallopt=lambda *_: 1)
    monkeypatch.setattr(ctypes, 'CDLL', lambda _: taken)
    monkeypatch.setattr(platform, 'libc_ver', lambda: ('glibc', '2.31'))
    for settings, heeded in (TOLD, True), (OF_OTHER_THINGS, False):
        for name, value in settings.items():
            with monkeypatch.context() as m:
                for other in (*TOLD, *OF_OTHER_THINGS):
                    m.delenv(other, raising=False)
                m.setenv(name, value)
                assert keep_memory.__wrapped__() == (not heeded), name


HALF = torch.tensor(0.5, dtype=torch.float64)


@pytest.fixture
def new_waves():
    "No position code is kept, before and after."
    axis_waves.cache_clear()
    window_shares.cache_clear()
    yield
    axis_waves.cache_clear()
    window_shares.cache_clear()


def test_another_default_type_leaves_nothing_behind(new_waves):
    torch.set_default_dtype(torch.float64)
    try:
        assert position_encoding(16, 16).dtype is torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert SpatialMix(1)(HALF, torch.zeros(1, 1, 16, 16)).dtype is torch.float64


def test_a_device_without_values_leaves_nothing_behind(new_waves):
    with torch.device('meta'):
        position_encoding(16, 16)
        window_shares(16, 8, 0.25)
    assert position_encoding(16, 16).device.type == 'cpu'
    assert window_shares(16, 8, 0.25)[0].device.type == 'cpu'


def test_fake_tensors_leave_nothing_behind(new_waves):
    mix, y = SpatialMix(1).eval(), torch.zeros(1, 1, 16, 16)
    path, looked_up, times = Brownian().eval(), VP(), HALF.reshape(1)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for n in (8, 16):  # 16 is asked for again
            mix(HALF, torch.empty(1, 1, n, n))
        path.table(uniform(3), torch.empty(1, 1, 16, 16))
        looked_up.coefs(times, torch.empty(1, 1, 16, 16))
        window_shares(16, 8, 0.25)
    assert type(position_encoding(16, 16)) is torch.Tensor
    assert type(window_shares(16, 8, 0.25)[0]) is torch.Tensor
    assert type(looked_up.coefs(times, y)[0]) is torch.Tensor
    with torch.no_grad():
        assert type(mix(HALF, y)) is torch.Tensor
        assert type(path.table(uniform(3), y)[1][0]) is torch.Tensor


def test_real_waves_are_not_mixed_with_fake_ones(new_waves):
    position_encoding(16, 16, torch.device('cpu'))
    with FakeTensorMode(), torch.no_grad():
        mix, half = SpatialMix(1), torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
        assert mix(half, torch.empty(1, 1, 16, 16)).shape == (1, 1, 16, 16)


def test_a_table_answers_in_the_type_that_it_is_asked_in():
    table = bridge.Table([0.0, 1 / 3, 1.0])
    table(HALF.float())
    assert torch.equal(table(HALF), torch.tensor(1 / 3, dtype=torch.float64))


@pytest.mark.parametrize('many', [1, 2])
def test_a_field_can_be_exported(new_waves, many):
    torch.manual_seed(0)
    mix, y = SpatialMix(1).eval(), torch.randn(many, 1, 16, 16)
    torch.nn.init.normal_(mix.net[-1].weight, std=0.3)
    with torch.no_grad():
        lam = HALF.expand(many, 1, 1, 1).clone()
        kept = torch.export.export(mix, (lam, y), strict=False).module()
        for end in (0.0, 0.3, 1.0):
            at = torch.full_like(lam, end)
            torch.testing.assert_close(kept(at, y), mix(at, y).expand(many, -1, -1, -1))
        assert type(mix(HALF, y)) is torch.Tensor


@pytest.mark.parametrize('method', sorted(methods))
def test_a_denoiser_can_be_pickled_after_a_draw(method):
    den, y = around_nothing(method), torch.randn(1, 1, 16, 16)
    ask = lambda d: draw(method, d, y, steps=min(3, methods[method].steps), seeds=[3])
    answer = ask(den)
    again = pickle.loads(pickle.dumps(den))
    assert again.bridge.kept is None
    assert torch.equal(ask(again), answer)


def test_two_threads_do_not_get_the_tables_of_each_other():
    class Slow(Brownian):
        "Waits, once its table is kept, until another one is."

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == 'kept' and value is not None:
                super().__setattr__(name, ('of', 'another', 'thread'))

    path = Slow().eval()
    with torch.no_grad():
        assert len(path.table(uniform(3), torch.zeros(1, 1, 8, 8))) == 4


@pytest.mark.parametrize('units', [True, False])
def test_bf16_has_the_channels_last_where_the_processor_takes_it(monkeypatch, units):
    asked = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: units)
    monkeypatch.setattr(torch.ops, 'mkldnn', asked)
    weight = lambda *how: next(
        p for p in fast(build('bbdm', 1, SMALL['unet']), *how).net.parameters() if p.ndim == 4
    )
    last = lambda v: v.is_contiguous(memory_format=torch.channels_last)
    assert last(weight('bf16')) == units
    assert not last(weight('no'))
    monkeypatch.setattr(torch.ops, 'mkldnn', SimpleNamespace())  # a torch without the library
    assert not last(weight('bf16'))
