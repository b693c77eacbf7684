"Defaults are what papers and releases define: recipes, weights of losses, rates of critics, and the steps of samplers."

from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xmodal.core import InputError, mend_torchvision
from xmodal.denoise import Denoiser, loss_per_item
from xmodal.training.adversarial import Adversarial, loss_inputs, objectives, share_options
from xmodal.train import Job, plan, recipe_of
from xmodal.methods import draw, make_bridge, methods
from xmodal.nets.build import build
from xmodal.training.loop import Recipe, accelerator, lr_at, param_groups

SIZES = dict(
    unet=dict(ch=8, mults=[1, 2], layers=1),
    unet256=dict(ch=8, levels=4, dropout=0.0),
    dtfnet=dict(ch=4),
)
ADVERSARIAL = sorted(n for n, m in methods.items() if m.adversarial)


def recipe(method, **how):
    return recipe_of(SimpleNamespace(**asdict(Job(method=method, **how))), method)


@pytest.mark.parametrize(
    'method, lr',
    [
        ('cdtsde', 5e-5),
        ('cdtsde_linear', 5e-5),
        ('bbdm', 5e-5),
        ('regression', 5e-5),
        ('dossr', 1e-4),
    ],
)
def test_latent_runs_train_as_the_paper_does(method, lr):
    """CDTSDE on Stable Diffusion: 5e-5, its mixing network ten times that, constant, no averaged
    weights; DOSSR 1e-4.
    """
    r = recipe(method, backbone='latent')
    assert {lr_at(k, r) for k in range(r.steps)} == {lr} and r.ema == 0.0 and r.weight_decay == 0.01
    factors = {g['factor'] for g in param_groups(build('cdtsde', 1, SIZES['unet']), r)}
    assert {round(lr * f / lr, 9) for f in factors} == {1.0, 10.0}


def test_what_is_asked_for_wins_over_the_method():
    r = recipe('cdtsde', backbone='latent', lr=3e-4, ema=0.9)
    assert (r.lr, r.ema, r.schedule) == (3e-4, 0.9, 'constant')
    assert recipe('cdtsde', ema=0.0).ema == 0.0
    with pytest.raises(InputError, match='ema'):
        plan(Job(smoke=True, overwrite=True, ema=-0.5))


def test_short_trainings_in_pixel_space_stay_as_they_were():
    r = recipe('cdtsde')
    assert (r.lr, r.ema, r.schedule, r.warmup, r.mix_lr, r.clip) == (
        1e-3,
        0.99,
        'cosine',
        50,
        10.0,
        1.0,
    )
    assert [recipe(n).lr for n in ('selfrdb', 'syndiff', 'metadb', 'pix2pix', 'dtfnet')] == [
        1.6e-4,
        1.6e-4,
        1.6e-4,
        2e-4,
        1e-4,
    ]


def player(name, lr=1e-3, bridge=None, **options):
    "A trainer with critics on the CPU, for images of 16 pixels."
    m = methods[name]
    net = dict(SIZES[m.net])
    if m.text:
        net |= dict(text=5, by=m.text)
    torch.manual_seed(1)
    den = build(name, 1, net, arch=m.net, bridge=bridge or {}).train()
    r = Recipe(
        **{**m.recipe, 'steps': 20, 'batch': 4, 'lr': lr, 'warmup': 0, 'schedule': 'constant'}
    )
    a = Adversarial(den, m, r, [dict(y=torch.zeros(1, 16, 16))], options or None)
    a.prepare(accelerator('no', 'cpu'))
    return a


def batch(name, n=4):
    g = torch.Generator().manual_seed(0)
    pair = torch.randn(2, n, 1, 16, 16, generator=g).tanh()
    t = torch.ones(n, dtype=torch.float64)
    if isinstance(methods[name].times, int):
        t = torch.arange(1, n + 1, dtype=torch.float64) / methods[name].times
    b = dict(x0=pair[0], y=pair[1], t=t, noise=torch.arange(n) + 11)
    if methods[name].text:
        b['ctx'] = torch.randn(n, 3, 5, generator=g)
    return b


RATES = dict(
    selfrdb=(1.6e-4, 1e-4),
    selfrdb_released=(1.6e-4, 1e-4),
    metadb=(1.6e-4, 1e-4),
    syndiff=(1.6e-4, 1e-4),
    syndiff_cycle=(1.6e-4, 1e-4),
    pix2pix=(2e-4, 2e-4),
    dtfnet=(1e-4, 1e-4),
    dtfnet_released=(1e-4, 1e-4),
)


@pytest.mark.parametrize('name', ADVERSARIAL)
def test_generator_and_critics_learn_at_the_published_rates(name):
    "What the optimisers hold after a step, not what a table says."
    a = player(name, lr=methods[name].recipe['lr'])
    a.step(0, batch(name))
    rates = [{g['lr'] for g in a.opts[k].param_groups} for k in ('optim', 'optim_critics')]
    np.testing.assert_allclose([v.pop() for v in rates], RATES[name], rtol=1e-12)
    assert not any(rates)
    assert {g['weight_decay'] for o in a.opts.values() for g in o.param_groups} == {0.0}
    betas = {g.get('betas') for o in a.opts.values() for g in o.param_groups}
    assert betas == {
        None if 'dtfnet' in name else (0.5, 0.999) if name == 'pix2pix' else (0.5, 0.9)
    }


@pytest.mark.parametrize(
    'name, weight, reduction',
    [
        ('selfrdb', 0.5, 'sum'),
        ('selfrdb_released', 0.5, 'sum'),
        ('metadb', 1.0, 'sum'),
        ('syndiff', 0.5, 'mean'),
    ],
)
def test_l1_is_weighed_as_released(name, weight, reduction):
    """SelfRDB's release adds up the errors of batch and pixels, and MetaDB is built on it; SynDiff
    takes their mean.
    """
    share = {}
    for how in ('mean', 'sum'):
        a = player(name, reduction=how)
        s = next(loss_inputs(a, batch(name)))
        made = a.o.make(s)
        zero = replace(s, options={**s.options, 'l1': 0.0})
        share[how] = (a.o.generator(s, made)[0] - a.o.generator(zero, made)[0]).item()
        error = (made['x0_hat'] - s.x0).abs()
        np.testing.assert_allclose(share[how], weight * float(getattr(error, how)()), rtol=1e-4)
    assert objectives[methods[name].adversarial].options['reduction'] == reduction
    np.testing.assert_allclose(share['sum'] / share['mean'], 4 * 16 * 16, rtol=1e-3)


def test_a_summed_loss_is_not_clipped():
    "At batch 4 and 256 pixels the sum is 262,144 times the mean; its gradient must arrive whole."
    for name in ADVERSARIAL:
        assert methods[name].recipe['clip'] >= 1e12
    a = player('selfrdb')
    assert (
        a.step(0, batch('selfrdb'))['grad_norm']
        > 10 * player('selfrdb', reduction='mean').step(0, batch('selfrdb'))['grad_norm']
    )


def test_a_run_with_critics_goes_on_with_the_options_it_began_with(tmp_path):
    "All options are in the checkpoint, so a default that changes between versions is noticed."
    from xmodal.training.adversarial import fit

    model = dict(method='selfrdb', channels=1, net=SIZES['unet'])
    data = [
        dict(y=torch.full((1, 16, 16), k / 4), x0=torch.full((1, 16, 16), -k / 4)) for k in range(4)
    ]

    def go(**kw):
        return fit(
            build(**model),
            data,
            tmp_path,
            'selfrdb',
            Recipe(steps=1, batch=2),
            model,
            device='cpu',
            progress=False,
            **kw,
        )

    go()
    with pytest.raises(InputError, match="'reduction': 'sum'"):
        go(resume=True, objective=dict(reduction='mean'))
    go(resume=True, objective=dict(reduction='sum'))


def fwd2(beta_max=0.3, T=1000):
    """I2SB's variances as its code makes them: half a table of roots, mirrored, summed from the
    target on.
    """
    half = torch.linspace(1e-4**0.5, (beta_max / T) ** 0.5, T, dtype=torch.float64)[: T // 2] ** 2
    beta = torch.cat([half, half.flip(0)])
    return beta.cumsum(0), beta


@pytest.mark.parametrize('beta_max', [0.3, 1.0])
def test_i2sb_answers_with_the_difference_over_its_own_spread(beta_max):
    """x0_hat = x - fwd_t F with the published fwd_t, through the model that `build` makes; its loss
    compares F with (x - x0)/fwd_t.
    """
    total = float(fwd2(beta_max)[0][-1])
    den = build('i2sb', 1, SIZES['unet'], bridge=dict(beta_max=beta_max)).eval()
    assert abs(den.scale.total / total - 1) < 1e-12 and abs(den.bridge.total / total - 1) < 1e-12
    F = 0.7
    den.net = type(
        'Constant',
        (torch.nn.Module,),
        dict(forward=lambda self, x, t, y, ctx=None: torch.full_like(x, F)),
    )()
    x = torch.full((1, 1, 4, 4), 0.25)
    for n in (1, 10, 400, 500, 999):
        fwd = float(fwd2(beta_max)[0][n - 1] ** 0.5)
        got = den(x, torch.tensor([n / 1000]), x)
        np.testing.assert_allclose(float(got[0, 0, 0, 0]), 0.25 - fwd * F, atol=1e-6)
    t, eps = torch.tensor([0.4], dtype=torch.float64), torch.randn(1, 1, 4, 4)
    a, b, c = (float(v) for v in den.bridge.coefs(0.4))
    state = a * 0.0 + b * x + c * eps
    want = ((state / float(fwd2(beta_max)[0][399] ** 0.5) - F) ** 2).mean()
    np.testing.assert_allclose(
        float(loss_per_item(den, 0 * x, x, t, eps, weight='net')[0]), float(want), rtol=1e-5
    )


def test_i2sbs_inclusive_sums_move_its_label_by_a_thousandth():
    """Said in the ledger: with the released sums fwd^2 is b (S + beta), the label here takes b S;
    exact with the default's.
    """
    off = []
    for beta_max in (0.3, 1.0):
        f2, _ = fwd2(beta_max)
        bridge = make_bridge('i2sb', 1, sums='inclusive', beta_max=beta_max)
        b = bridge.b.values[1:]
        off.append(float((b * bridge.total / f2 - 1).abs().max()))
        exact = make_bridge('i2sb', 1, beta_max=beta_max)
        np.testing.assert_allclose(exact.b.values[1:] * exact.total, f2, rtol=1e-9)
    np.testing.assert_allclose(off, [1.32e-3, 1.75e-3], rtol=0.01)


def test_a_latent_has_the_priors_spread(tmp_path):
    "Mean and standard deviation of the autoencoder's posterior, both times its scaling factor."
    mend_torchvision()
    from diffusers import AutoencoderKL
    from xmodal.nets.latent import Codec, tiny_prior

    vae = AutoencoderKL.from_pretrained(tiny_prior(tmp_path) / 'vae')
    code = Codec(3, vae.config)
    code.vae.load_state_dict(vae.state_dict())
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    said = vae.encode(images).latent_dist
    mean, std = code.posterior(images)
    np.testing.assert_allclose(mean, said.mean.detach() * vae.config.scaling_factor, atol=1e-6)
    np.testing.assert_allclose(std, said.std.detach() * vae.config.scaling_factor, atol=1e-6)
    assert abs(vae.config.scaling_factor - 1) > 0.1  # or this would see nothing


class Steps(torch.nn.Module):
    "Answers with its last answer and a little more, an amount per image."

    def __init__(self, more):
        super().__init__()
        self.more = torch.as_tensor(more).reshape(-1, 1, 1, 1)

    def forward(self, x, t, y, ctx=None, x_r=None):
        return x_r + torch.where(x_r == 0, torch.full_like(x, 0.5), self.more.expand_as(x))


def test_the_recursion_of_selfrdb_ends_early_on_demand():
    """Option stop=0.01: the newer of two estimates that hardly differ is discarded, for each image
    alone; off by default.
    """
    sampler, bridge, _ = share_options('selfrdb', dict(stop=0.01))
    den = Denoiser(Steps([0.009, 0.011]), make_bridge('selfrdb', 1, **bridge), 'x0', recur=2)
    y = torch.zeros(2, 1, 8, 8)
    np.testing.assert_allclose(
        draw('selfrdb', den, y, **sampler)[:, 0, 0, 0], [0.5, 0.511], atol=1e-6
    )
    np.testing.assert_allclose(draw('selfrdb', den, y)[:, 0, 0, 0], [0.509, 0.511], atol=1e-6)
    with pytest.raises(InputError, match='stop'):
        share_options('bbdm', dict(stop=0.01))


@pytest.mark.parametrize('name', ['metadb', 'selfrdb'])
def test_a_clean_source_end(name):
    """prior=clean: the path ends at the source, sampling begins there, the sampler keeps the
    marginals, training runs.
    """
    bridge = make_bridge(name, 1, prior='clean')
    a, b, c = (float(v) for v in bridge.coefs(1.0))
    assert (a, b, c) == (0.0, 1.0, 0.0)
    assert float(make_bridge(name, 1).coefs(1.0)[2]) > 1.07  # the default is the soft prior
    player_ = player(name, bridge=dict(prior='clean'))
    got = player_.step(0, batch(name))
    assert all(bool(torch.isfinite(v)) for v in got.values())
    source, states = torch.full((1, 1, 64, 64), 0.5), []

    class Knows(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bridge = bridge

        def forward(self, x, t, y, ctx=None):
            states.append(x.clone())
            return torch.zeros_like(x)

    out = draw(name, Knows(), source, seeds=4)
    assert torch.equal(states[0], source) and torch.equal(out, torch.zeros_like(out))
    for n, x in zip(range(9, 0, -1), states[1:]):
        _, b, c = (float(v) for v in bridge.coefs(n / 10))
        np.testing.assert_allclose(
            [float(x.mean()), float(x.std())], [b * 0.5, c], atol=0.06 * c + 1e-6
        )


@pytest.mark.parametrize(
    'name, T', [('bbdm', 1000), ('i2sb', 1000), ('selfrdb', 10), ('syndiff', 4)]
)
def test_coefficients_agree_with_the_official_tables(name, T):
    """Written out once more from the releases: BBDM's m_t, I2SB's sums, SelfRDB's soft prior,
    SynDiff's four steps.
    """
    n = np.arange(1, T + 1)
    if name == 'bbdm':
        m = 0.001 + 0.998 * (n - 1) / 999
        want = 1 - m, m, np.sqrt(2 * (m - m**2))
    elif name == 'i2sb':
        f2, _ = (v.numpy() for v in fwd2())
        b2 = f2[-1] - f2
        want = b2 / f2[-1], f2 / f2[-1], np.sqrt(f2 * b2 / f2[-1])
    elif name == 'selfrdb':
        beta = np.array(
            [0, 0.1, 0.11518, 0.13143, 0.14875, 0.16714, 0.14875, 0.13143, 0.11518, 0.1, 0]
        )
        s2 = beta.cumsum()
        r2 = s2[::-1]
        want = [
            v[1:] for v in (r2 / (s2 + r2), s2 / (s2 + r2), beta.sum() * np.sqrt(s2) / (s2 + r2))
        ]
    else:
        bars = np.cumprod(1 - np.array([0.47826, 0.84921, 0.95642, 0.98740]))
        want = np.sqrt(bars), 0 * bars, np.sqrt(1 - bars)
    got = [[float(v) for v in make_bridge(name, 1).coefs(float(k) / T)] for k in n]
    np.testing.assert_allclose(np.array(got).T, np.array(want), atol=2e-5)


def ideal(pred, x, x0, y, eps, a, b, c, total):
    "What a perfect network answers with, from the definitions."
    return dict(
        x0=x0,
        eps=(x - (a + b) * x0) / c,
        v=((a + b) * x - x0) / c,
        grad=x - x0,
        ysubx=y - x0,
        flow=(x - x0) / (b + c),
        noise=eps,
        i2sb=(x - x0) / (b * total) ** 0.5,
    )[pred]


@pytest.mark.parametrize('pred', ['x0', 'eps', 'v', 'grad', 'ysubx', 'flow', 'noise', 'i2sb'])
def test_a_perfect_answer_gives_the_target(pred):
    """Through the denoiser, with its input, its source and its output, and not through the factors
    alone.
    """
    from xmodal.denoise import Scale

    g = torch.Generator().manual_seed(0)
    x0, y, eps = torch.randn(3, 2, 1, 4, 4, generator=g, dtype=torch.float64)
    bridge = make_bridge('cdtsde_linear', 1)
    a, b, c = bridge.coefs(0.4)
    x = a * x0 + b * y + c * eps

    class Knows(torch.nn.Module):
        def forward(self, state, t, source, ctx=None):
            assert torch.equal(state, x) and torch.equal(source, y) and bool((t == 400).all())
            return ideal(pred, x, x0, y, eps, a, b, c, 0.3)

    den = Denoiser(Knows(), bridge, pred, scale=Scale(total=0.3))
    t = torch.tensor([0.4, 0.4], dtype=torch.float64)
    if pred == 'v':
        np.testing.assert_allclose(float((a + b) ** 2 + c**2), 1, rtol=1e-12)
    np.testing.assert_allclose(den(x, t, y), x0, atol=1e-9)


def layers(net, *kinds):
    "What the modules of these kinds are set to, in order."
    found = []
    for m in net.modules():
        if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            found.append(
                (
                    type(m).__name__,
                    m.in_channels,
                    m.out_channels,
                    m.kernel_size[0],
                    m.stride[0],
                    m.padding[0],
                )
            )
        if isinstance(m, torch.nn.LeakyReLU):
            found.append(('LeakyReLU', m.negative_slope))
        if isinstance(m, torch.nn.ReflectionPad2d):
            found.append(('pad', m.padding[0]))
    return [v for v in found if not kinds or v[0] in kinds]


def test_the_patch_critic_is_layer_by_layer_the_published_one():
    from xmodal.nets.discriminators import PatchDiscriminator

    conv = lambda i, o, stride: ('Conv2d', i, o, 4, stride, 1)
    slope = ('LeakyReLU', 0.2)
    assert layers(PatchDiscriminator(2)) == [
        conv(2, 64, 2),
        slope,
        conv(64, 128, 2),
        slope,
        conv(128, 256, 2),
        slope,
        conv(256, 512, 1),
        slope,
        conv(512, 1, 1),
    ]


def test_the_translator_is_layer_by_layer_the_published_one():
    "CycleGAN's: 7x7 under reflection, two of stride 2, six residual blocks, two transposed, 7x7."
    from xmodal.nets.discriminators import ResnetTranslator

    block = [('pad', 1), ('Conv2d', 256, 256, 3, 1, 0)] * 2
    up = [('ConvTranspose2d', 256, 128, 3, 2, 1), ('ConvTranspose2d', 128, 64, 3, 2, 1)]
    enter = [
        ('pad', 3),
        ('Conv2d', 1, 64, 7, 1, 0),
        ('Conv2d', 64, 128, 3, 2, 1),
        ('Conv2d', 128, 256, 3, 2, 1),
    ]
    assert layers(ResnetTranslator()) == [
        *enter,
        *block * 6,
        *up,
        ('pad', 3),
        ('Conv2d', 64, 1, 7, 1, 0),
    ]


def test_the_critic_of_steps_is_line_by_line_the_published_one():
    """SelfRDB's: 1x1, halving blocks with the time added after the first convolution, skips over
    sqrt 2, minibatch deviation, sum over places.
    """
    import torch.nn.functional as F
    from xmodal.nets.discriminators import TimeDiscriminator, minibatch_std
    from xmodal.nets.published import fir_half

    default = TimeDiscriminator()
    widths = [default.enter.out_channels, *[b.conv1.out_channels for b in default.blocks]]
    assert (
        widths == [64, 128, 256, 256, 256, 256, 256]
        and default.group == 4
        and default.enter.in_channels == 2
    )
    assert default.embed.linear_1.in_features == 256 and default.embed.linear_2.out_features == 256
    assert layers(default, 'Conv2d')[0][3:] == (1, 1, 0) and layers(default, 'Conv2d')[-1] == (
        'Conv2d',
        257,
        256,
        3,
        1,
        1,
    )
    torch.manual_seed(0)
    net = TimeDiscriminator(1, ch=4, blocks=2, temb=8)
    for p in net.parameters():
        if p.abs().max() == 0:
            torch.nn.init.normal_(p, 0, 0.2)
    x_s, x_t, t = (
        torch.randn(4, 1, 16, 16),
        torch.randn(4, 1, 16, 16),
        torch.tensor([0.1, 0.4, 0.6, 0.9]),
    )
    leaky = lambda v: torch.where(v > 0, v, 0.2 * v)
    angle = 1000 * t[:, None] * torch.exp(-np.log(10000.0) * torch.arange(4) / 3)
    e = leaky(
        net.embed.linear_2(F.silu(net.embed.linear_1(torch.cat([angle.sin(), angle.cos()], 1))))
    )
    h = net.enter(torch.cat([x_s, x_t], 1))
    for block in net.blocks:
        v = block.conv1(leaky(h)) + block.time(e)[:, :, None, None]
        h = (block.conv2(fir_half(leaky(v))) + block.skip(fir_half(h))) / 2**0.5
    h = leaky(net.last(minibatch_std(h, 4)))
    np.testing.assert_allclose(
        net(x_s, x_t, t).detach(), net.out(h.sum((2, 3)))[:, 0].detach(), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    'method, options, word',
    [
        ('selfrdb', dict(reducton='sum'), 'reduction'),
        ('pix2pix', dict(l1='many'), 'l1'),
        ('dbim', dict(reduction='sum'), 'order'),
        ('dossr', dict(order=7), 'order'),
        ('ddbm_vp', dict(churn=1.5), 'churn'),
        ('abridge', dict(factor='foo'), 'factor'),
        ('bbdm', dict(sampler='unmatched', amplitude='loud'), 'amplitude'),
        ('ddpm', dict(sampler='dual'), 'source'),
        ('selfrdb', dict(pair='foo'), 'markov'),
        ('selfrdb', dict(r1_at='foo'), 'judged'),
        ('selfrdb', dict(reduction='foo'), 'mean'),
        ('dtfnet', dict(sign='foo'), 'right'),
        ('pix2pix', dict(norm='foo'), 'instance'),
        ('syndiff', dict(r1_every=0), 'r1_every'),
        ('pix2pix', dict(l1=-1), 'l1'),
        ('selfrdb', dict(stop='soon'), 'stop'),
        ('syndiff', dict(stop=0.01), 'stop'),
        ('metadb', dict(prior='hard'), 'clean'),
        ('selfrdb_released', dict(prior='clean'), 'soft prior'),
        ('abridge_score', dict(sampler='score', first='no'), 'marginal'),
    ],
)
def test_an_option_that_does_not_fit_is_named(method, options, word):
    with pytest.raises(InputError, match=word):
        share_options(method, options)


def test_the_constants_of_the_objectives_are_the_published_ones():
    step = dict(gamma=1.0, r1_every=10, group=4, adversarial=1.0, l1=0.5)
    want = dict(
        selfrdb=dict(step, width=1),
        syndiff=dict(step, width=2),
        syndiff_cycle=dict(step, width=2, blocks=6),
        selfrdb_released=dict(step, r1_every=5, pair='independent', r1_at='condition'),
        metadb=dict(step, l1=1.0, adversarial=0.1, semantic=0.01, layers=3),
        pix2pix=dict(l1=100.0, layers=3),
        dtfnet=dict(l1=100.0, ssim=100.0, layers=4, ssim_range=2.0),
    )
    for name, constants in want.items():
        assert {k: objectives[name].options[k] for k in constants} == constants, name
    assert (objectives['dtfnet'].clip, objectives['dtfnet'].optimiser) == (0.01, 'rmsprop')


def test_the_texture_is_a_sobel_filter_of_seven_pixels():
    from scipy.ndimage import correlate1d
    from xmodal.training.adversarial import sobel

    image = torch.rand(1, 1, 24, 24)
    smooth, slope = [1, 6, 15, 20, 15, 6, 1], [-1, -4, -5, 0, 5, 4, 1]
    v = image[0, 0].double().numpy()
    g = np.hypot(
        *(correlate1d(correlate1d(v, a, 0), b, 1) for a, b in ((smooth, slope), (slope, smooth)))
    )[3:-3, 3:-3]
    got = sobel(image)[0, 0, 3:-3, 3:-3].numpy()
    np.testing.assert_allclose(
        (got - got.min()) / np.ptp(got), (g - g.min()) / np.ptp(g), atol=1e-4
    )
