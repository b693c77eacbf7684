"A denoiser that sees windows or slices: what it costs, and what it may not change."

import importlib.util
import sys

import pytest
import skimage.data
import torch
import torch.nn.functional as F
from torch import nn

from xmodal.bridge import CDTSDE, Brownian
from xmodal.core import InputError
from xmodal.denoise import Clip, Denoiser, Network, Stop
from xmodal.methods import draw, methods
from xmodal.mixing import SpatialMix
from xmodal.nets.anchor import build_anchored
from xmodal.nets.build import build, sizes_for
from xmodal.sample import Estimator, Plain, sample, uniform, zero
from xmodal.tiles import PLANES, SlicewiseBridge, Tiled, Views
from xmodal.data.volumes import planes_for
from xmodal.tiles import window_shares, window_starts


with_monai = pytest.mark.skipif(
    not (importlib.util.find_spec('monai') and importlib.util.find_spec('einops')),
    reason='MONAI and einops are not installed',
)


class Pixelwise(Network):
    "Counts its calls and the images in them; answers with a function of single pixels."

    def __init__(self, latent=0):
        super().__init__()
        self.latent, self.calls, self.most, self.largest = latent, 0, 0, 0

    def forward(self, x, t, y, ctx=None, x_r=None, z=None):
        self.calls, self.most = self.calls + 1, max(self.most, len(x))
        self.largest = max(self.largest, x[0].numel())
        by_image = lambda v: v.reshape(-1, *[1] * (x.ndim - 1))
        told = 0 if z is None else by_image(z[:, 0])
        if ctx is not None and ctx.ndim == x.ndim:
            told = told + ctx.mean(1, keepdim=True)
        elif ctx is not None:
            told = told + by_image(ctx[:, 0, 0])
        if x_r is not None:
            told = told + 0.3 * x_r
        return torch.tanh(2 * x - y + told) + 1e-3 * by_image(t)


class Small(Network):
    "Five convolutions with random weights."

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        sizes = [2, 16, 16, 16, 16, 1]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(sizes, sizes[1:]))

    def forward(self, x, t, y, ctx=None):
        h = torch.cat([x, y], 1)
        for layer in self.layers[:-1]:
            h = F.silu(2 * layer(h))
        return y + self.layers[-1](h)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bent(channels=1, sees_y=False):
    "A denoiser of a bridge whose field differs from pixel to pixel."
    torch.manual_seed(0)
    den = Denoiser(Pixelwise(), CDTSDE(SpatialMix(channels, sees_y=sees_y)), 'ddbm').eval()
    for q in den.bridge.parameters():
        nn.init.normal_(q, std=0.3)
    return den


def close(got, want, eps=1e-6):
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= eps * max(1, float(want.abs().max()))


@pytest.mark.parametrize('side', [1, 5, 16, 17, 40, 100])
@pytest.mark.parametrize('overlap', [0, 0.1, 0.25, 0.5, 0.9])
def test_windows_cover_a_side_inside_it(side, overlap):
    first, share = window_starts(side, 16, overlap), window_shares(side, 16, overlap)
    whole, n = torch.zeros(side, dtype=torch.float64), min(side, 16)
    assert len(first) == len(share) and list(first) == sorted(set(first))
    for k, w in zip(first, share):
        assert 0 <= k and k + n <= side and len(w) == n and bool((w > 0).all())
        whole[k : k + n] += w
    close(whole, torch.ones(side, dtype=torch.float64), 1e-12)
    assert all(b - a <= max(1, 16 * (1 - overlap)) for a, b in zip(first, first[1:]))


@pytest.mark.parametrize('shape', [(100, 70), (30, 300), (6, 40, 50)])
def test_evaluations_are_tiles_times_steps(shape):
    net, y = Pixelwise(), noise(1, 1, *shape)
    tiled = Tiled(Denoiser(net, Brownian()), 32, batch=1)
    sample(tiled, y, uniform(3))
    assert net.calls == 3 * tiled.count(shape) == 3 * len(tiled.windows(*shape)) > 3
    assert net.largest <= 32 ** len(shape)


def test_no_more_tiles_in_flight_than_allowed():
    net, y = Pixelwise(), noise(3, 1, 60, 60)
    tiled = Tiled(Denoiser(net, Brownian()), 32, batch=5)
    sample(tiled, y, uniform(1))
    assert net.most == 5 and net.calls == -(-3 * tiled.count((60, 60)) // 5)


def test_one_tile_changes_no_bit():
    den, y = build('cdtsde', 1, net=dict(ch=8, mults=(1, 2), layers=1)).eval(), noise(2, 1, 30, 37)
    for patch in (37, (30, 37), (64, 40)):
        assert torch.equal(sample(Tiled(den, patch), y, uniform(3)), sample(den, y, uniform(3)))
    two = build('abridge', 1, net=dict(ch=8, mults=(1, 2), layers=1)).eval()
    assert torch.equal(draw('abridge', Tiled(two, 40), y, 2), draw('abridge', two, y, 2))


@pytest.mark.parametrize('patch', [1, 16, 33, (20, 90), (200, 8)])
@pytest.mark.parametrize('overlap', [0, 0.25, 0.7])
def test_a_pixelwise_network_does_not_know_of_tiles(patch, overlap):
    den, y = bent(2), noise(2, 2, 40, 50)
    if patch == 1:
        y = y[..., :9, :7]
    close(sample(Tiled(den, patch, overlap, 64), y, uniform(2)), sample(den, y, uniform(2)))


def test_in_three_dimensions():
    den, y = Denoiser(Pixelwise(), Brownian()), noise(2, 1, 9, 20, 24)
    for patch in (8, (4, 16, 30)):
        close(sample(Tiled(den, patch), y, uniform(3)), sample(den, y, uniform(3)))


@pytest.mark.parametrize('sees_y', [False, True])
def test_the_field_is_that_of_the_whole_picture(sees_y):
    "Also where the caller has no coefficients to hand over, and the times differ."
    den, y, x = bent(sees_y=sees_y), noise(2, 1, 40, 50), noise(2, 1, 40, 50, seed=1)
    t = torch.tensor([0.7, 0.3])
    with torch.no_grad():
        close(Tiled(den, 16)(x, t, y), den(x, t, y))
        cut = den(x[..., :16, :16], t, y[..., :16, :16])
        assert float((cut - den(x, t, y)[..., :16, :16]).abs().max()) > 1e-3
    close(draw('cdtsde', Tiled(den, 16), y, 3), draw('cdtsde', den, y, 3))


def test_prompts_pictures_and_random_vectors_follow_their_image():
    den, y = Denoiser(Pixelwise(latent=4), Brownian()), noise(2, 1, 40, 50)
    for ctx in (None, noise(2, 3, 5, seed=2), noise(2, 4, 40, 50, seed=3)):
        close(sample(Tiled(den, 16), y, uniform(2), ctx=ctx), sample(den, y, uniform(2), ctx=ctx))


WITHOUT_ANCHOR = [n for n, m in methods.items() if not m.anchor]  # the others: test_anchor


@pytest.mark.parametrize('method', WITHOUT_ANCHOR)
def test_every_method(method):
    made = build(method, 1, net=dict(ch=8, mults=(1,), layers=1), arch='unet').eval()
    made.net = Pixelwise(latent=made.latent)
    if made.two_networks:
        made.twin = Pixelwise()
    y = noise(2, 1, 20, 30)
    close(draw(method, Tiled(made, 16), y, 2), draw(method, made, y, 2), 1e-5)


def test_wrappers_compose():
    den, y = Denoiser(Pixelwise(), Brownian()), noise(1, 1, 40, 50)
    want = sample(Clip(den, -0.3, 0.3), y, uniform(2))
    close(sample(Tiled(Clip(den, -0.3, 0.3), 16), y, uniform(2)), want)
    close(sample(Clip(Tiled(den, 16), -0.3, 0.3), y, uniform(2)), want)
    close(sample(Tiled(Tiled(den, 8), 16), y, uniform(2)), sample(den, y, uniform(2)))
    twice = Denoiser(Pixelwise(), Brownian(), recur=3)
    sample(Stop(Tiled(twice, 16)), y, uniform(2))
    plain = Plain(lambda x, t, y, ctx: torch.tanh(x) * y)
    plain.den.bridge = Brownian()
    close(sample(Tiled(plain, 16), y, uniform(2)), sample(plain, y, uniform(2)))


def test_the_second_network_is_asked_in_tiles_too():
    den, y, t = bent(), noise(2, 1, 40, 50), torch.tensor([0.7, 0.3])
    den.twin = Pixelwise()
    with torch.no_grad():
        want, whole = den.eps_hat(y, t, 0.5 * y), den(y, t, 0.5 * y)
        assert float((want - whole).abs().max()) > 0.1
        close(Tiled(den, 16).eps_hat(y, t, 0.5 * y), want)
        close(Tiled(den, 50).eps_hat(y, t, 0.5 * y), want, 0)


class Seen(Estimator):
    "Keeps what it was asked."

    bridge, takes_coefs = Brownian(), True

    def __call__(self, x, t, y, ctx=None, **more):
        self.asked = dict(x=x, t=t, y=y, ctx=ctx, **more)
        return x


def test_one_tile_hands_on_what_came_in_and_many_their_share():
    seen, y, t = Seen(), noise(2, 1, 40, 50), torch.tensor([0.7, 0.3])
    Tiled(seen, 50)(y, t, y, stop=0.1)
    assert seen.asked['x'] is y and set(seen.asked) == {'x', 't', 'y', 'ctx', 'stop'}
    Tiled(seen, 16)(y, t, y, stop=0.1)
    assert seen.asked['stop'] == 0.1 and seen.asked['x'].shape[2:] == (16, 16)
    assert [len(v) for v in seen.asked['coefs']] == [len(seen.asked['x'])] * 3


def jump(picture, windows):
    "Mean |difference| across the columns where windows begin or end, over that of the others."
    width, cuts = picture.shape[-1], {k for _, c in windows for k in (c.start, c.stop)}
    border = torch.zeros(width - 1, dtype=torch.bool)
    border[[k - 1 for k in cuts if 0 < k < width]] = True
    step = picture.diff(dim=-1).abs().mean(dim=(0, 1, 2))
    return float(step[border].mean() / step[~border].mean())


def test_no_seams():
    "The picture has edges of its own, so the jump is compared with that of the picture made whole."
    y = torch.tensor(skimage.data.camera()).float()[None, None] / 127.5 - 1
    den = Denoiser(Small(), Brownian()).eval()
    whole, seams = {n: sample(den, y, uniform(n), zero) for n in (1, 2)}, {}
    for n, overlap in ((1, 0), (1, 0.25), (2, 0.25)):
        tiled = Tiled(den, 64, overlap)
        cuts, got = tiled.windows(512, 512), sample(tiled, y, uniform(n), zero)
        seams[n, overlap] = jump(got, cuts) / jump(whole[n], cuts)
    assert seams[1, 0] > 1.1
    assert 0.98 < seams[1, 0.25] < 1.02 and 0.98 < seams[2, 0.25] < 1.02


def test_refusals():
    den, y = Denoiser(Pixelwise(), Brownian()), noise(1, 1, 40, 50)
    for patch in (0, -3, 2.5, (), (8, 0), 'all'):
        with pytest.raises(ValueError, match='patch'):
            Tiled(den, patch)
    for overlap in (1, -0.1, 2):
        with pytest.raises(ValueError, match='overlap'):
            Tiled(den, 16, overlap)
    with pytest.raises(ValueError, match='batch'):
        Tiled(den, 16, batch=0)
    with pytest.raises(ValueError, match='3 sides'):
        sample(Tiled(den, (8, 8, 8)), y, uniform(1))
    den.net.autoencoder = lambda: object()
    with pytest.raises(InputError, match='latents'):
        Tiled(den, 16)


# ---- views


class OneDraw:
    "The noise of a volume, also for its slices as a batch."

    def __init__(self, seeds, device):
        self.gen = torch.Generator(device).manual_seed(7)

    def __call__(self, like):
        vol = torch.randn(1, 9, 20, 24, generator=self.gen)
        return vol[None] if like.ndim == 5 else vol.transpose(0, 1)


@pytest.mark.parametrize('den', [Denoiser(Small(), Brownian()), bent()])
def test_the_axial_view_is_the_model_slice_by_slice(den, monkeypatch):
    monkeypatch.setattr('xmodal.sample.Noise', OneDraw)
    den, vol = den.eval(), noise(1, 1, 9, 20, 24)
    want = sample(den, vol[0].transpose(0, 1), uniform(3)).transpose(0, 1)[None]
    close(sample(Views(den, ('axial',)), vol, uniform(3)), want)


def test_a_pixelwise_network_does_not_know_from_where_it_looks():
    vol = noise(2, 1, 9, 20, 24)
    for den in (Denoiser(Pixelwise(), Brownian()), bent(), bent(sees_y=True)):
        want = sample(Views(den, 'axial'), vol, uniform(3))
        for planes in (tuple(PLANES), ('sagittal',), ('coronal', 'axial')):
            close(sample(Views(den, planes), vol, uniform(3)), want, 1e-5)
        close(sample(Views(den, weights=(1, 2, 3)), vol, uniform(3)), want, 1e-5)


def test_evaluations_are_slices_times_steps():
    net, vol = Pixelwise(), noise(1, 1, 9, 20, 24)
    views = Views(Denoiser(net, Brownian()), batch=1)
    sample(views, vol, uniform(2))
    assert net.calls == 2 * views.count((9, 20, 24)) == 2 * (9 + 20 + 24)
    views, net.calls, net.most = Views(Denoiser(net, Brownian()), batch=8), 0, 0
    sample(views, vol, uniform(1))
    assert (net.calls, net.most) == (2 + 3 + 3, 8)


def test_each_plane_sees_its_slices_with_its_weight():
    class Rows(Network):
        def forward(self, x, t, y, ctx=None):
            return x.cumsum(-2)

    x, t = noise(2, 1, 4, 5, 6), torch.tensor([0.3, 0.6])
    den = Denoiser(Rows(), Brownian())
    down = dict(axial=x.cumsum(3), coronal=x.cumsum(2), sagittal=x.cumsum(2))
    for plane, want in down.items():
        close(Views(den, plane)(x, t, x), want)
    got = Views(den, ('coronal', 'axial'), weights=(3, 1))(x, t, x)
    close(got, 0.75 * down['coronal'] + 0.25 * down['axial'])


def test_what_goes_with_a_volume_is_cut_with_it():
    den, vol = Denoiser(Pixelwise(latent=4), Brownian()), noise(2, 1, 9, 20, 24)
    for ctx in (None, noise(2, 3, 5, seed=2), noise(2, 4, 9, 20, 24, seed=3)):
        want = sample(den, vol, uniform(2), ctx=ctx)
        close(sample(Views(den), vol, uniform(2), ctx=ctx), want)
    den = bent()
    den.twin = Pixelwise()
    t = torch.tensor([0.7, 0.3])
    with torch.no_grad():
        close(Views(den).eps_hat(vol, t, vol), Views(den, 'axial').eps_hat(vol, t, vol))


def test_views_and_tiles_compose():
    den, vol = bent(), noise(1, 1, 9, 20, 24)
    want = draw('cdtsde', Views(den, 'axial'), vol, 2)
    for both in (Views(Tiled(den, 16)), Tiled(Views(den), (4, 16, 16)), Views(Clip(den, -9, 9))):
        close(draw('cdtsde', both, vol, 2), want, 1e-5)


@pytest.mark.parametrize('method', WITHOUT_ANCHOR)
def test_a_volume_by_every_method(method):
    made = build(method, 1, net=dict(ch=8, mults=(1,), layers=1), arch='unet').eval()
    made.net = Pixelwise(latent=made.latent)
    if made.two_networks:
        made.twin = Pixelwise()
    vol = noise(1, 1, 4, 8, 9)
    close(draw(method, Views(made), vol, 2), draw(method, Views(made, 'axial'), vol, 2), 1e-5)


def test_a_field_is_asked_slice_by_slice():
    vol, t = noise(2, 1, 5, 12, 10), torch.tensor([0.7, 0.3])
    for sees_y, slices in ((False, 1), (True, 5)):
        flat = bent(sees_y=sees_y).bridge
        a, b, c = (v.detach() for v in SlicewiseBridge(flat).coefs(t, vol))
        assert a.shape[2:] == (slices, 12, 10) and c.shape == (2, 1, slices, 1, 1)
        close(b[:, :, -1], flat.coefs(t, vol[:, :, -1])[1].detach(), 0)
    views = Views(bent())
    assert views.bridge is views.bridge.posterior()
    plain = Denoiser(Pixelwise(), Brownian())
    assert Views(plain).bridge is plain.bridge


def test_planes_that_make_sense():
    assert planes_for((1, 1, 1)) == (tuple(PLANES), '')
    planes, words = planes_for((5, 0.9, 0.9))
    assert planes == ('axial',)
    assert 'coronal (5 x 0.9 mm)' in words and 'sagittal' in words and 'axial' not in words
    assert planes_for((1, 5, 1))[0] == ('coronal',)
    assert planes_for((1.6, 1.2, 1))[0] == ('axial', 'sagittal')
    assert planes_for((9, 4, 1))[0] == ('sagittal',)
    for planes in ('oblique', (), ('axial', 'axial')):
        with pytest.raises(InputError, match='axial, coronal, sagittal'):
            Views(bent(), planes)
    for weights in ((1, 2), (1, 0, 1)):
        with pytest.raises(ValueError, match='weights'):
            Views(bent(), weights=weights)
    with pytest.raises(ValueError, match='volume'):
        Views(bent())(noise(1, 1, 8, 8), torch.ones(1), noise(1, 1, 8, 8))


@with_monai
def test_the_same_as_sliding_windows_of_monai():
    from monai.inferers import sliding_window_inference

    net, t, y = Small().eval(), torch.tensor([0.5]), noise(1, 1, 100, 70)
    tiled = Tiled(Denoiser(net, Brownian()), 32, 0.25)
    weight = torch.exp(-0.5 * ((torch.arange(32) - 15.5) / 4) ** 2)
    with torch.no_grad():
        got = tiled(y, t, y)
        want = sliding_window_inference(
            y,
            32,
            4,
            lambda v: net(v, t, v),
            overlap=0.25,
            roi_weight_map=(weight[:, None] * weight)[None, None],
        )
    close(got, want, 1e-5)


# ---- a network of volumes


def solid(method='bbdm', **options):
    "A denoiser of volumes with weights that are not zero."
    torch.manual_seed(0)
    den = build_anchored(method, 1, dict(ch=8, mults=(1, 2)), arch='unet3d', **options).eval()
    for q in (q for q in den.net.parameters() if not q.any()):
        nn.init.normal_(q, std=0.1)
    return den


@with_monai
def test_a_network_of_volumes_in_blocks():
    den, vol = solid(), noise(1, 1, 9, 20, 24)
    whole = sample(den, vol, uniform(2))
    assert torch.equal(sample(Tiled(den, 24), vol, uniform(2)), whole)
    got = sample(Tiled(den, (8, 16, 16), 0.5), vol, uniform(2))
    assert got.shape == whole.shape and bool(got.isfinite().all())
    assert 0 < float((got - whole).abs().mean()) < 0.5 * float(whole.std())


@with_monai
def test_a_network_of_volumes_learns():
    den, y = solid('regression'), noise(1, 1, 6, 9, 10).tanh()
    den.train()
    opt, t, losses = torch.optim.AdamW(den.parameters(), 1e-2), torch.ones(1), []
    for _ in range(25):
        loss = (den(y, t, y) + y).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


@with_monai
@pytest.mark.parametrize('method', methods)
def test_each_method_serves_volumes_or_is_refused_in_one_line(method):
    try:
        den = solid(method)
    except InputError as e:
        assert '\n' not in str(e) and 'unet' in str(e)
        m = methods[method]
        assert m.adversarial or m.anchor or method.startswith('cdtsde') or 'metadb' in method
        return
    assert not methods[method].adversarial  # critics look at pictures
    vol = noise(1, 1, 4, 6, 5)
    assert draw(method, den, vol, 2).shape == vol.shape


@with_monai
def test_a_network_of_volumes_refuses_pictures():
    with pytest.raises(InputError, match='takes volumes'):
        sample(solid(), noise(1, 1, 8, 8), uniform(1))
    with pytest.raises(InputError, match='prompts'):
        sizes_for('unet3d', 64, text=7)


def test_without_monai_one_line_says_what_to_install(monkeypatch):
    for missing in ('einops', 'monai.networks.nets'):
        with monkeypatch.context() as m:
            m.setitem(sys.modules, missing, None)
            with pytest.raises(InputError, match=r'pip install "xmodal\[monai\]"') as e:
                build('bbdm', arch='unet3d')
            assert '\n' not in str(e.value)
