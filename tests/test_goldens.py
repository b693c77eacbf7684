"""Goldens: what xmodal computes and says, frozen, so that a rebuilding cannot change it unnoticed.

Every item is a named piece of behaviour: a row of the table of methods on an oracle and on a
small network, a sampler with one of its options, a translated file, the checkpoint of a short
training, the options of a command, the text of a refusal. `catalogue` lists them, and how each is
made again. Arrays lie in tests/goldens/*.safetensors, all else in tests/goldens/goldens.json.

Numbers are compared with a tolerance, because another CPU's kernels round otherwise; with the
environment variable XMODAL_EXACT=1 bit for bit, which holds on the machine that wrote them.

    python tests/test_goldens.py --write              all items
    python tests/test_goldens.py --write refusal/     those whose names begin so

writes them anew. That is allowed when behaviour is meant to change, and only for the items that
change: the commit names each of them and says why it is right. A red golden in a change that was
meant to move code is a fault of that change. tests/goldens/model is a model folder of format 1, as
users have them. It is written once, if it is not there, and never again: a new format leaves it as
it is and has to go on reading it.
"""

import atexit
import contextlib
import functools
import hashlib
import io
import json
import os
import re
import runpy
import shutil
import sys
import tempfile
import warnings
import zlib
from dataclasses import asdict, fields, replace
from pathlib import Path

for threads in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
    os.environ.setdefault(threads, '1')  # read when torch is imported

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

# everything of xmodal that is used here: modules may move, these lines move with them
from xmodal.cli import main as xmodal_main
from xmodal.data.windows import window_of
from xmodal.denoise import Clip, Denoiser, Stop, losses, loss_per_item, predictions
from xmodal.evaluation.calibration import fit_intervals, judged_person
from xmodal.training.adversarial import fit, objectives
from xmodal.train import Job
from xmodal.train import train_command as train_main
from xmodal.nets.latent import read_prior, tiny_prior
from xmodal.data.layouts import datasets
from xmodal.methods import draw, make_bridge, methods, parse_options, recipe_for, split_options
from xmodal.nets.anchor import build_anchored as build
from xmodal.nets.build import nets
from xmodal.sample import GaussianOracle, rules, scaled
from xmodal.solvers import grids, samplers
from xmodal.nets.conditioning import conditionings
from xmodal.training.model_folder import save_model
from xmodal.training.loop import Recipe
from xmodal.translate import Translator

XMODAL, TRAIN = 'xmodal.cli', 'xmodal.train'  # modules that are commands, as python -m NAME

HERE = Path(__file__).resolve().parent / 'goldens'
TEXTS, KEPT = HERE / 'goldens.json', HERE / 'model'
EXACT = os.environ.get('XMODAL_EXACT') == '1'
RTOL, ATOL = 1e-4, 1e-5  # relative to the number, and to the largest of its array
SIZES = dict(
    unet=dict(ch=8, mults=[1, 2], layers=1),
    dtfnet=dict(ch=4),
    unet256=dict(ch=8, levels=4, dropout=0.0),
    ncsnpp=dict(ch=8, mults=[1, 2], layers=1, latent=4),
)
WIDTH = 5  # of a made prompt


# --- what is frozen is made of


def images(n=2, channels=1, size=16, seed=0, dtype=torch.float32):
    "Made images in (-1, 1)."
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, size, size, generator=g, dtype=dtype).tanh()


def prompts(n=2):
    "Made prompts (n, 3, WIDTH) of source, target and region."
    return torch.randn(n, 3, WIDTH, generator=torch.Generator().manual_seed(9))


def filled(module):
    "The module in eval mode, with weights that hang on their names alone; none is left at zero."
    if not isinstance(module, torch.nn.Module):
        return module
    for name, p in module.named_parameters():
        g = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        v = torch.randn(p.shape, generator=g)
        if p.ndim > 1:
            v = v * (p[0].numel() or 1) ** -0.5
        else:
            v = 0.1 * v + name.endswith('weight')
        p.data = v.to(p.dtype)
    return module.eval()


def sizes(name):
    "Sizes of the network of a row."
    m = methods[name]
    return {**SIZES[m.net], **(dict(text=WIDTH, by=m.text) if m.text else {})}


def network(name, channels=1, **more):
    "A small denoiser of a row with fixed weights."
    return filled(build(name, channels, more.pop('net', None) or sizes(name), **more))


class Oracle(GaussianOracle):
    "The exact denoiser of a Gaussian world, which also knows the noise."

    def eps_hat(self, x, t, y, ctx=None):
        "The noise in x, were the estimate true."
        a, b, c = (v.to(x.dtype) for v in self.bridge.coefs(t, y))
        return (x - a * self(x, t, y) - b * y) / c


def numbers(v):
    "A tensor as an array."
    return v.detach().cpu().numpy()


def path_of(draws):
    "What a sampler does: times, last estimate, last state. draws: callback -> state."
    seen = []
    state = draws(seen.append)
    times = np.array([[d['t'], d['s']] for d in seen])
    return dict(times=times, x0_hat=numbers(seen[-1]['x0_hat']), state=numbers(state))


# --- the table of methods


def plain(value):
    "A value as JSON holds it."
    return json.loads(json.dumps(value))


def method_row(name):
    "What the table says, apart from prose and functions; and how the row is trained."
    m = methods[name]
    row = {f.name: getattr(m, f.name) for f in fields(m) if f.name not in ('about', 'bridge')}
    how = {b: recipe_for(name, b) for b in ('pixel', 'latent')}
    return dict(row=plain(row), recipe=plain(how))


def method_bridge(name, **options):
    "Coefficients along the way."
    bridge, y = filled(make_bridge(name, 2, **options)), images(1, 2, 2, 7, torch.float64)
    bridge = bridge.posterior() if hasattr(bridge, 'posterior') else bridge
    times = (0.0, 0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999, 1.0)
    at = [[numbers(v.expand_as(y)) for v in bridge.coefs(t, y)] for t in times]
    return dict(coefs=np.array(at)[:, :, 0])


def method_oracle(name):
    "The row's own number of steps on an oracle, two channels, float64."
    oracle = Oracle(filled(make_bridge(name, 2)))
    y, m = images(2, 2, 4, 3, torch.float64), replace(methods[name], anchor='')
    if m.sampler == 'midpoint':  # which asks for one
        m = replace(m, sampler='step', grid='uniform', options={})
    m = m if methods[name].anchor else name  # the oracle has no anchor
    return path_of(lambda see: draw(m, oracle, y, seeds=11, out='state', callback=see))


def few_steps(name):
    "Five steps, or as many as the row has."
    m = methods[name]
    return min(5, m.steps, m.times if isinstance(m.times, int) else 5)


def method_network(name, den=None, channels=1, **how):
    "A few steps with a small network."
    m = methods[name]
    den = den or network(name, channels)
    how = {'steps': few_steps(name), 'seeds': [5, 8], **how}
    ctx = prompts() if m.text else None
    y = images(2, channels)
    return path_of(lambda see: draw(name, den, y, ctx=ctx, out='state', callback=see, **how))


def method_loss(name):
    "The denoising loss of two images, and the slope of its sum."
    m, den = methods[name], network(name)
    x0, y, eps = (images(seed=k) for k in (1, 2, 3))
    high = 1.0 if m.times == 'one' else 0.7
    t = torch.tensor([0.3 if high < 1 else 1.0, high], dtype=torch.float64)
    if isinstance(m.times, int):
        t = (t * m.times).ceil() / m.times
    ctx = prompts() if m.text else None
    z = images(2, 1, 2).flatten(1) if den.latent else None
    held, y = (den, y) if den.anchor is None else den.anchor.hold(den, y)
    loss = loss_per_item(held, x0, y, t, eps, ctx, m.loss, m.weight, z)
    loss.sum().backward()
    slopes = {k: p.grad for k, p in den.named_parameters() if p.grad is not None}
    return dict(loss=numbers(loss), **whole(slopes, 'slopes'))


def method_training(name):
    "The weights that a seed gives, and the log of two steps."
    torch.manual_seed(1)
    model = dict(method=name, channels=1, net=sizes(name), arch=methods[name].net)
    den = build(**model)
    before = whole(den.state_dict(), 'before')
    data = [dict(y=y, x0=-(y**3)) for y in images(4)]
    if methods[name].text:
        data = [dict(d, ctx=c) for d, c in zip(data, prompts(8).reshape(4, 2, 3, WIDTH))]
    recipe = Recipe(**{**recipe_for(name), 'steps': 2, 'batch': 2, 'warmup': 0})
    with tempfile.TemporaryDirectory() as out, quiet():
        log = fit(den, data, out, name, recipe, model, device='cpu', log_every=1, progress=False)
    log = {k: log[k].tolist() for k in log if k != 'seconds'}
    return dict(log=log, **before)


# --- sketches of many tensors

PICKED = 8


def sketch(v, picked=PICKED):
    "Some numbers of a tensor that change with any of its elements: picked ones, then sums."
    v = np.asarray(numbers(v), dtype=np.float64).ravel()
    at = np.linspace(0, len(v) - 1, picked).round().astype(int)
    wave = np.cos(np.arange(len(v)) * 0.7) + 1.5
    size = np.sqrt(np.mean(v**2))
    return [*v[at], v.mean(), size, np.abs(v).max(), np.mean(v * wave)]


def words_of(tensors) -> dict:
    "Name -> type and shape."
    kind = {k: str(v.dtype).removeprefix('torch.') for k, v in tensors.items()}
    return {k: f'{kind[k]} {list(v.shape)}' for k, v in sorted(tensors.items())}


def digest_of(tensors) -> str:
    "The sha256 of all bits, in the order of the names."
    digest = hashlib.sha256()
    for k in sorted(tensors):
        digest.update(numbers(tensors[k]).tobytes())
    return digest.hexdigest()


def sketches(tensors):
    "Names, types, shapes, and a line of numbers for each tensor; and a digest of all bits."
    lines = [sketch(tensors[k]) for k in sorted(tensors)]
    return dict(words=words_of(tensors), lines=np.array(lines), sha256=digest_of(tensors))


def whole(tensors, name):
    "Many tensors as one sketch, and as one word that changes with any name, type or shape."
    told = zlib.crc32(json.dumps(words_of(tensors)).encode())
    one = torch.cat([tensors[k].detach().double().ravel() for k in sorted(tensors)])
    return {
        f'{name} words': f'{len(tensors)} tensors, {told:08x}',
        f'{name} sha256': digest_of(tensors),
        f'{name} sketch': np.array(sketch(one, 60)),
    }


# --- ways of sampling

DRAWS = dict(
    tau_zero=('cdtsde', dict(tau='zero')),
    tau_vp=('cdtsde', dict(tau='vp')),
    eta=('cdtsde', dict(eta=0.4)),
    clip=('cdtsde', dict(clip=True)),
    start_source=('cdtsde', dict(start='source')),
    start_marginal=('bbdm', dict(start='marginal')),
    order_2=('cdtsde', dict(order=2)),
    grid_of_times=('cdtsde', dict(grid=[1.0, 0.6, 0.15, 0.0])),
    grid_dossr=('cdtsde', dict(grid='dossr')),
    grid_karras=('ddbm_vp', dict(rho=3.0, steps=3, clip=False)),
    another_seed=('cdtsde', dict(seeds=77)),
    dossr_order_3=('dossr', dict(order=3)),
    bbdm_grid=('bbdm', dict(steps=11, eta=0.5)),
    unmatched=('bbdm', dict(sampler='unmatched', amplitude=0.5)),
    dual_released=('abridge', dict(factor='released')),
    score_released=('abridge_score', dict(sampler='score', first='released')),
    heun_without_churn=('ddbm_vp', dict(churn=0.0, guidance=0.5)),
    dbim_on_ddbm=('ddbm_vp', dict(sampler='dbim', order=2, grid='dbim', eta=0.0)),
    dbim_eta=('dbim', dict(eta=0.7)),
    recursion_that_stops=('selfrdb', dict(stop=2.2)),
    recursion_that_stops_later=('selfrdb', dict(stop=1.8)),
)
BRIDGES = dict(
    released_base=('cdtsde', dict(base='released', keep=0.7)),
    power=('cdtsde_linear', dict(power=3.0)),
    i2sb_sums=('i2sb', dict(sums='inclusive', beta_max=0.5)),
    sin=('bbdm', dict(schedule='sin')),
    max_var=('abridge', dict(max_var=0.2)),
    dbim_ve=('dbim', dict(kind='ve')),
    clean_prior=('selfrdb', dict(prior='clean')),
    soft_prior=('selfrdb', dict(gamma=2.0, posterior_std='s')),
    betas=('syndiff', dict(beta_min=0.2, beta_max=10.0)),
)


def other_network(kind):
    "Networks with a latent vector, on latents of an autoencoder, and with two channels."
    if kind == 'latent_vector':
        den = network('syndiff', net=SIZES['ncsnpp'], arch='ncsnpp')
        return method_network('syndiff', den)
    if kind == 'autoencoder':
        with tempfile.TemporaryDirectory() as prior, quiet():
            den = network('cdtsde', net=read_prior(tiny_prior(prior)), arch='latent')
        y = images()
        return dict(
            x0_hat=numbers(draw('cdtsde', den, y, 3, seeds=5)), codes=numbers(den.codec.encode(y))
        )
    return method_network('cdtsde_channel', channels=2)


def estimate(pred):
    "One estimate with every parametrisation, and the same clipped."
    den = network('cdtsde_linear', pred=pred)
    x, y, t = images(seed=4), images(), torch.tensor([0.2, 0.4], dtype=torch.float64)
    return dict(x0_hat=numbers(den(x, t, y)), clipped=numbers(Clip(den, -0.5, 0.25)(x, t, y)))


def recursion(calls):
    "A denoiser that calls its network so often, alone, and ending where little changes."
    one = network('selfrdb')
    den = Denoiser(one.net, one.bridge, 'x0', recur=calls)
    x, y, t = images(seed=4), images(), torch.tensor([0.2, 0.7], dtype=torch.float64)
    return dict(x0_hat=numbers(den(x, t, y)), stopped=numbers(Stop(den, 2.2)(x, t, y)))


def loss_kind(kind):
    "A loss between two images, and with a divisor."
    a, b = images(), images(seed=1)
    return dict(loss=numbers(losses[kind](a, b)), divided=numbers(losses[kind](a, b, out=0.3)))


# a sampler, the bridge it belongs to, its grid, its noise rule (None: its own), its options
SOLVERS = dict(
    step=('step', 'cdtsde', 'uniform', None, {}),
    step_order_2=('step', 'cdtsde', 'uniform', None, dict(order=2)),
    step_zero=('step', 'bbdm', 'uniform', 'zero', {}),
    step_vp=('step', 'cdtsde_linear', 'uniform', 'vp', {}),
    step_half=('step', 'abridge_score', 'uniform', 'half', {}),
    step_scaled=('step', 'i2sb', 'i2sb', 0.3, {}),
    dossr_1=('dossr', 'dossr', 'dossr', None, dict(order=1)),
    dossr_2=('dossr', 'dossr', 'dossr', None, dict(order=2)),
    dossr_3=('dossr', 'dossr', 'uniform', None, dict(order=3)),
    dbim_1=('dbim', 'dbim', 'dbim', None, dict(order=1)),
    dbim_1_noise=('dbim', 'dbim', 'dbim', 'markov', dict(order=1)),
    dbim_2=('dbim', 'dbim', 'dbim', None, dict(order=2)),
    dbim_3=('dbim', 'dbim', 'dbim', None, dict(order=3)),
    euler=('euler', 'flow', 'uniform', None, {}),
    euler_ot=('euler', 'i2sb_ode', 'i2sb', None, {}),
    score=('score', 'abridge_score', 'uniform', None, {}),
    score_released=('score', 'abridge_score', 'uniform', None, dict(first='released')),
    unmatched=('unmatched', 'bbdm', 'uniform', None, {}),
    unmatched_half=('unmatched', 'bbdm', 'uniform', None, dict(amplitude=0.5)),
    unmatched_abridge=('unmatched', 'abridge', 'uniform', None, dict(amplitude='abridge')),
    unmatched_score=(
        'unmatched',
        'abridge_score',
        'uniform',
        'half',
        dict(amplitude='abridge_score'),
    ),
    dual=('dual', 'abridge', 'uniform', None, {}),
    dual_released=('dual', 'abridge', 'uniform', None, dict(factor='released')),
    dual_alone=('dual', 'abridge', 'uniform', None, dict(twin=False)),
    heun=('heun', 'ddbm_vp', 'karras', None, {}),
    heun_ode=('heun', 'ddbm_vp', 'karras', None, dict(churn=0.0)),
    heun_guidance=('heun', 'ddbm_ve', 'karras', None, dict(churn=0.5, guidance=0.6)),
)


def solver(name):
    "A sampler on an oracle: both answers, the way, its price, and from a given state."
    row, method, grid, tau, options = SOLVERS[name]
    bridge = filled(make_bridge(method, 1))
    y, run = images(2, 1, 8, 3, torch.float64), samplers[row].run
    how = dict(options)
    if tau is not None:
        how['tau'] = rules[tau] if tau in rules else scaled(rules['markov'], tau)
    times, oracle = grids[grid](6, bridge), Oracle(bridge)

    def go(**more):
        return run(oracle, y, times, **{'seeds': 21, **how, **more})

    return dict(
        path_of(lambda see: go(out='state', callback=see)),
        answer=numbers(go()),
        given=numbers(go(x=images(2, 1, 8, 6, torch.float64), seeds=[3, 4])),
        calls=samplers[row].calls(6, **options),
    )


def grid_row(name):
    "A grid for several numbers of steps."
    bridge = make_bridge(dict(karras='ddbm_vp', dbim='dbim', nodes='selfrdb').get(name, 'bbdm'), 1)
    return {f'of {n}': numbers(grids[name](n, bridge)) for n in (1, 2, 4, 10)}


def intervals(kind):
    "What is fitted to the errors of people: of several draws, or of one answer each."
    rng, people = np.random.default_rng(0), []
    for i in range(19):
        truth, std = rng.normal(size=(1, 2, 8, 8)) * 0.3, rng.random((1, 2, 8, 8)) * 0.1
        mean = truth + (0.5 + rng.random()) * 4 * std * rng.normal(size=std.shape)
        people.append(
            judged_person(f'p{i}', truth, mean, std if kind == 'draws' else None, most=50)
        )
    fit = fit_intervals(people)
    held = {k: None if v is None else float(v.mean()) for k, v in fit.coverage.items()}
    tables = dict(factors=fit.factors, widths=fit.widths, constant=fit.constant, held=held)
    named = {k: {str(level): v for level, v in table.items()} for k, table in tables.items()}
    return dict(named, floor=fit.floor, kappa=fit.kappa)


def names():
    "What there is to choose from."
    found = dict(
        methods=methods,
        samplers=samplers,
        grids=grids,
        rules=rules,
        nets=nets,
        predictions=predictions,
        losses=losses,
        objectives=objectives,
        conditionings=conditionings,
        datasets=datasets,
    )
    return {k: sorted(v) for k, v in found.items()}


def objective(name):
    "Options and rates of the critics of a row."
    o = objectives[name]
    keys = ('options', 'rate', 'optimiser', 'clip', 'fresh')
    return plain({k: getattr(o, k) for k in keys})


# --- files

VOLUME = dict(
    dataset='test',
    source='T1w',
    target='T2w',
    kind='volume',
    size=16,
    spacing=3.0,
    source_window='percentile',
    target_window=[0.0, 900.0],
    target_window_rule='percentile',
    channels=[1, 1],
    steps=3,
    tau='markov',
    options={},
    fit='shrink',
    target_dtype='int16',
    source_values=dict(mean=[-1.0, 1.0], spread=[0.0, 1.0]),
    target_reach=[0.0, 950.0],
)
PICTURE = dict(
    VOLUME,
    source='A',
    target='B',
    kind='image',
    spacing=None,
    source_window='dtype',
    target_window=[0.0, 255.0],
    target_window_rule='dtype',
    target_dtype='uint8',
    target_reach=[3.0, 250.0],
)
SMALL = dict(method='cdtsde', channels=1, net=dict(ch=4, mults=[1, 2], layers=1))


def new_folder(path, data, **model):
    "Save a small model with fixed weights under a path, and return it."
    model = {**SMALL, **model}
    training = dict(recipe=plain(asdict(Recipe(steps=10))), n_train_images=12)
    with quiet():
        save_model(path, filled(build(**model)), model, data, training, '# A model of tests\n')
    return path


@functools.cache
def work() -> Path:
    "A folder for this process, removed at its end."
    folder = Path(tempfile.mkdtemp(prefix='goldens-'))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def model_folder(kind) -> Path:
    "A model folder: the kept one of volumes, and new ones."
    if kind == 'kept':
        return KEPT
    if kind == 'float':
        return new_folder(work() / kind, dict(VOLUME, target_dtype='float32'))
    if kind == 'labels':
        data = dict(VOLUME, target_window_rule='labels:0:6', target_window=[0.0, 6.0])
        return new_folder(work() / kind, data)
    if kind == 'patches':
        return new_folder(work() / kind, dict(PICTURE, fit='patch', size=32))
    if kind == 'colour':
        data = dict(PICTURE, channels=[1, 3])
        return new_folder(work() / kind, data, channels=3)
    return new_folder(work() / kind, PICTURE)


def body(shape, seed=0):
    "A smooth body with some noise, from 0 to about 1."
    at = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing='ij')
    inside = sum(v**2 for v in at) < 0.8
    waves = 0.6 + 0.2 * np.cos(4 * at[0] + seed) + 0.1 * np.sin(5 * at[1] - seed)
    return inside * waves + 0.05 * np.random.default_rng(seed).random(shape)


def scan(path, seed=0, scale=900.0, shape=(14, 17, 6)) -> Path:
    "A NIfTI file that does not lie along the axes."
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.array([[-3.0, 0, 0.1, 20], [0, 3, 0, -21], [0.1, 0, 4, 5], [0, 0, 0, 1]])
    image = nib.Nifti1Image((body(shape, seed) * scale).astype(np.int16), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 2)
    image.header.set_xyzt_units('mm')
    nib.save(image, path)
    return path


@functools.cache
def source_of(kind) -> Path:
    "A file to be translated."
    if kind in ('kept', 'float', 'labels'):
        return scan(work() / 'source_T1w.nii.gz')
    path = work() / 'source.png'
    Image.fromarray((body((21, 17)) * 230).astype(np.uint8)).save(path)
    return path


CHANGING = (
    'seconds',
    'machine',
    'sha256',
    'xmodal',
    'seconds_per_image',
    'training_seconds',
    'memory_gb',
    'prepared',
    'commit',
    'python',
    'versions',
    'threads',
    'gpu',
    'Version',
    'SourceDigest',
    'OutputDigest',
    'MapDigests',
    'prompts',
)


def steady(value, key=''):
    "A JSON value without what hangs on time, machine and version; the keys stay."
    if isinstance(value, dict) and not (key in CHANGING and 'method' not in value):
        return {k: steady(v, k) for k, v in value.items()}
    return f'({type(value).__name__})' if key in CHANGING and value is not None else value


def contents(path) -> dict:
    "What a written file holds: numbers and header."
    if path.suffix == '.json':
        words = json.loads(path.read_text(encoding='utf-8'))
        words['xmodal']['model'] = f'({len(words["xmodal"]["model"])} letters)'
        return dict(notes=steady({k: v for k, v in words.items()}))
    if path.name.endswith('.nii.gz'):
        image = nib.load(path)
        fields = {k: repr(v.tolist()) for k, v in image.header.items()}
        v = np.asarray(image.dataobj)
        return dict(array=v, affine=image.affine, header=fields, sha256=bits(v))
    if path.suffix == '.tif':
        v = tifffile.imread(path)
        return dict(array=v, sha256=bits(v))
    image = Image.open(path)
    v = np.asarray(image)
    return dict(
        array=v, mode=image.mode, size=list(image.size), format=image.format, sha256=bits(v)
    )


def bits(v) -> str:
    "The sha256 of an array."
    return hashlib.sha256(np.ascontiguousarray(v).tobytes()).hexdigest()


def flat(found) -> dict:
    "file -> part -> value as one dictionary."
    return {f'{file} {part}': v for file, parts in found.items() for part, v in parts.items()}


def shown(message, category, filename, lineno, file=None, line=None):
    "Write a warning as Python does by itself; pytest would collect it."
    print(warnings.formatwarning(message, category, filename, lineno, line), file=sys.stderr)


def notes_in(err) -> list:
    "The lines in which xmodal says something."
    return [tidy(line) for line in re.split(r'[\r\n]+', err) if line.startswith('xmodal:')]


def command(run, *words):
    "Exit code, standard output and standard error of a command in this process."
    out, err, code = io.StringIO(), io.StringIO(), 0
    said = warnings.formatwarning
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                warnings.filterwarnings('always', category=UserWarning)
                warnings.showwarning = shown
                code = run([str(w) for w in words])
    except SystemExit as e:
        code = e.code or 0
    finally:
        warnings.formatwarning = said
    return code, out.getvalue(), err.getvalue()


TRANSLATIONS = dict(
    volume=('kept', ['--samples', 3, '--save-mix']),
    volume_alone=('kept', ['--steps', 2, '--seed', 4, '--tau', 'zero', '--noise', 'independent']),
    volume_float=('float', ['--samples', 2, '--save-mix', '--batch', 4]),
    volume_labels=('labels', ['--samples', 3]),
    png=('png', ['--samples', 3, '--save-mix']),
    png_patch=('patches', ['--samples', 2, '--save-mix', '--seed', 1]),
    png_colour=('colour', ['--samples', 2, '--steps', 2]),
)


def translation(name):
    "`xmodal translate` of one file: every file that it writes."
    kind, words = TRANSLATIONS[name]
    source = source_of(kind)
    folder = Path(tempfile.mkdtemp(dir=work()))
    ending = ''.join(source.suffixes)
    given = [model_folder(kind), source, folder / f'out{ending}', '--device', 'cpu', *words]
    code, out, err = command(xmodal_main, 'translate', *given)
    found = {p.name: contents(p) for p in sorted(folder.iterdir())}
    return dict(code=code, said=notes_in(err), files=sorted(found), **flat(found))


def tidy(text) -> str:
    "A text without the places of this process."
    text = text.replace(str(work()), '(folder)').replace(str(HERE), '(goldens)')
    text = re.sub(r'xmodal \d+\.\d+\.\d+', 'xmodal (version)', text)
    for what, known in (('methods', methods), ('data sets', datasets)):
        every = lambda m: set(m[1].split(', ')) == set(known)
        short = lambda m: f'use one of the {what}' if every(m) else m[0]
        text = re.sub(r'use one of ([\w, ]+)', short, text)
    return text


def translator(kind):
    "A Translator on the CPU."
    with quiet():
        return Translator.from_pretrained(model_folder(kind), 'cpu')


def array_in_python(kind):
    "What a Translator makes of an array, a tensor, a PIL image and a nibabel image."
    tr = translator('kept' if kind in ('array', 'tensor', 'nibabel') else 'png')
    how = dict(samples=2, mix=True, seed=3, steps=[1.0, 0.5, 0.1, 0.0])
    source = dict(
        array=lambda: (body((5, 13, 15), 2) * 800).astype(np.float32),
        tensor=lambda: images(3, size=16),
        nibabel=lambda: nib.load(source_of('kept')),
        picture=lambda: Image.open(source_of('png')),
        pixels=lambda: np.asarray(Image.open(source_of('png')))[:, ::2],
    )[kind]()
    with quiet():
        got = tr.maps(source, **how)

    def array(v):
        return np.ascontiguousarray(v.dataobj if hasattr(v, 'dataobj') else v)

    return {k: array(v) for k, v in got.items()}


def kept_model():
    "The folder that stays as it is: what is read from it, and what it answers."
    tr = translator('kept')
    y, t = images(seed=2), torch.tensor([0.3, 0.8], dtype=torch.float64)
    config = json.loads((KEPT / 'config.json').read_text(encoding='utf-8'))
    answer = tr.run(numbers(images(3)), seed=2, steps=3)
    return dict(
        config=config,
        read=plain(tr.config),
        answer=answer,
        x0_hat=numbers(tr.den(images(), t, y)),
        **sketches(tr.den.state_dict()),
    )


# --- trainings

WORDS = (
    '--dataset bids --root set --size 16 --spacing 3 --ch 8 --mults 1,2 --layers 1 --steps 10 '
    '--batch 4 --val-every 5 --save-every 4 --sample-steps 2 --check False --device cpu'
)
TRAININGS = dict(
    cdtsde='--method cdtsde --baseline True',
    selfrdb='--method selfrdb --baseline False',
    metadb='--method metadb --baseline False --options r1_every=3 --forget 0.3',
)


def data_set(root):
    "Four persons with two scans each, and what is known about them."
    for k in range(1, 5):
        place = root / f'sub-{k:02d}' / 'anat'
        for name, scale, te in (('T1w', 900.0, 0.004), ('T2w', 500.0, 0.09 + k / 100)):
            shape = (15, 16, 7)
            scan(place / f'sub-{k:02d}_{name}.nii.gz', k + 4 * (name == 'T2w'), scale, shape)
            about = dict(
                EchoTime=te,
                RepetitionTime=0.5 + k / 10,
                MagneticFieldStrength=3.0,
                Manufacturer='Siemens',
            )
            (place / f'sub-{k:02d}_{name}.json').write_text(json.dumps(about))
    people = [f'sub-{k:02d}\t{30 + 7 * k}\t{"FM"[k % 2]}' for k in range(1, 5)]
    (root / 'participants.tsv').write_text('\n'.join(['participant_id\tage\tsex', *people]) + '\n')
    (root / 'dataset_description.json').write_text(json.dumps(dict(Name='s', BIDSVersion='1.8.0')))


@functools.cache
def training(name) -> Path:
    "The folder of a run of ten steps by the command."
    place = work() / 'project'
    if not place.exists():
        data_set(place / 'set')
    words = f'{WORDS} {TRAININGS[name]} --name {name}'.split()
    with contextlib.chdir(place):
        code, _, said = command(train_main, *words)
    assert code == 0, said
    return place / 'runs' / name


def read_table(path) -> dict:
    "Columns of a CSV file of numbers, without the seconds."
    header, *rows = [line.split(',') for line in path.read_text().splitlines()]
    table = {k: [float(v) if v else None for v in column] for k, column in zip(header, zip(*rows))}
    table['seconds'] = None
    return dict(columns=header, values=table)


# in front of a group norm whose groups hold one channel: the true slope is 0, and Adam makes
# steps of the learning rate out of its rounding error
DEAF = re.compile(r'(conv1|conv2|conv_shortcut)\.bias$|time_emb_proj\.|\.hear\.')


def weights_item(run, path):
    "A file of tensors of a checkpoint; of a denoiser, those without a true slope apart."
    tensors = {k: torch.from_numpy(v) for k, v in load_file(path).items()}
    if path.stem == 'ema':
        model = json.loads((run / 'model' / 'config.json').read_text(encoding='utf-8'))['model']
        names = [k for k, _ in build(**model).named_parameters()]
        assert [f'{k:05d}' for k in range(len(names))] == sorted(tensors)
        tensors = {k: tensors[n] for k, n in zip(names, sorted(tensors))}
    if path.stem not in ('ema', 'model'):
        return sketches(tensors)
    deaf = {k: v for k, v in tensors.items() if DEAF.search(k)}
    heard = {k: v for k, v in tensors.items() if k not in deaf}
    parts = dict(heard=sketches(heard), deaf=sketches(deaf))
    return {f'{name} {k}': v for name, part in parts.items() for k, v in part.items()}


def run_item(name, part):
    "A part of a run: a file of the checkpoint, the log, the metrics, the model folder."
    run = training(name)
    steps = sorted(run.glob('checkpoints/*'))
    if part.endswith('.safetensors'):
        return weights_item(run, steps[-1] / part)
    if part == 'files':
        found = (p.relative_to(run).as_posix() for p in run.rglob('*') if p.is_file())
        return dict(files=sorted(found), checkpoints=[p.name for p in steps])
    if part.endswith('.csv'):
        return read_table(run / part)
    if part == 'translated':
        source = sorted(run.parents[1].glob('set/sub-01/anat/*_T1w.nii.gz'))[0]
        wish = dict(target=dict(TE=100.0)) if name == 'metadb' else {}
        with quiet():
            got = Translator.from_pretrained(run / 'model', 'cpu').translate(source, seed=1, **wish)
        return dict(array=np.asarray(got.dataobj))
    path = steps[-1] / part if part == 'state.json' else run / part
    return steady(json.loads(path.read_text(encoding='utf-8')))


RUN_PARTS = dict(
    cdtsde=['model.safetensors', 'ema.safetensors', 'optim.safetensors', 'regression/log.csv'],
    selfrdb=[
        'model.safetensors',
        'ema.safetensors',
        'optim.safetensors',
        'critics.safetensors',
        'optim_critics.safetensors',
    ],
    metadb=[
        'model.safetensors',
        'ema.safetensors',
        'optim.safetensors',
        'critics.safetensors',
        'optim_critics.safetensors',
        'helpers.safetensors',
    ],
)
EVERY_RUN = ['files', 'log.csv', 'metrics.json', 'model/config.json', 'state.json', 'translated']


# --- commands

COMMANDS = {
    'xmodal': (xmodal_main, []),
    'translate': (xmodal_main, ['translate']),
    'bids-app': (xmodal_main, ['bids-app']),
    'evaluate': (xmodal_main, ['evaluate']),
    'calibrate': (xmodal_main, ['calibrate']),
    'report': (xmodal_main, ['report']),
    'data': (xmodal_main, ['data']),
    'data-list': (xmodal_main, ['data', 'list']),
    'data-info': (xmodal_main, ['data', 'info']),
    'data-check': (xmodal_main, ['data', 'check']),
    'data-difficulty': (xmodal_main, ['data', 'difficulty']),
    'data-get': (xmodal_main, ['data', 'get']),
    'train': (train_main, []),
}


def words_of_help(text) -> list:
    "Options, arguments and commands that a help text lists; not its prose."
    found = set()
    for line in text.splitlines():
        if not re.match(r' {2,4}\S', line):
            continue
        head = re.split(r' {2,}', line.strip())[0]
        if head.startswith('-'):
            found |= set(re.findall(r'(?<![\w-])--?[A-Za-z][\w-]*', head))
            found |= {f'{head.split()[0]} {c}' for c in re.findall(r'\{.*?\}', head)}
        elif re.fullmatch(r'[\w-]+', head):
            found.add(head)
    return sorted(found)


def command_help(name):
    "What a command can be told."
    run, words = COMMANDS[name]
    code, out, _ = command(run, *words, '--help')
    return dict(code=code, flags=words_of_help(out))


def module_help(name):
    "The same of a module that is a command: python -m NAME."

    def run(words):
        runpy.run_module(name, run_name='__main__')

    old = sys.argv
    sys.argv = [name, '--help']
    try:
        code, out, _ = command(run)
    finally:
        sys.argv = old
    return dict(code=code, flags=words_of_help(out))


def defaults():
    "What a training does unless it is told otherwise; and what is known about every data set."
    sets = {k: [getattr(v, n, None) for n in ('source', 'target')] for k, v in datasets.items()}
    return dict(job=plain(asdict(Job())), recipe=plain(asdict(Recipe())), datasets=plain(sets))


# --- refusals

Y = images(2, 1, 8)


def oracle(method='cdtsde'):
    "An oracle on the bridge of a row."
    return Oracle(make_bridge(method, 1))


def ask(method, **how):
    "Draw with an oracle."
    return draw(method, oracle(method), Y, **how)


def solve(name, method, grid='uniform', **how):
    "A sampler with an oracle."
    times = grids[grid](4, make_bridge(method, 1)) if isinstance(grid, str) else grid
    return samplers[name].run(oracle(method), Y, times, **how)


def damaged(change, file='config.json'):
    "Open a copy of the kept model, one of whose files was changed."
    folder = Path(tempfile.mkdtemp(dir=work())) / 'model'
    shutil.copytree(KEPT, folder)
    path = folder / file
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    try:
        Translator.from_pretrained(folder, 'cpu')
    except ValueError as e:
        raise type(e)(str(e).replace(str(folder), '(model)')) from None


def replaced(old, new):
    "bytes -> bytes with other words, for `damaged`."

    def change(b):
        assert old in b
        return b.replace(old, new)

    return change


def say_maps(kind, source=None, **how):
    "Ask a Translator for maps."
    return translator(kind).maps(source if source is not None else source_of(kind), **how)


def lost_scan():
    "A scan whose header says nothing about its place."
    path = scan(work() / 'lost' / 'lost.nii.gz')
    image = nib.load(path)
    image.set_sform(image.affine, 0)
    image.set_qform(image.affine, 0)
    nib.save(image, path.with_name('nowhere.nii.gz'))
    return path.with_name('nowhere.nii.gz')


def broken(name, data=b'nothing'):
    "A file that holds something else than its name says."
    path = work() / name
    path.write_bytes(data)
    return path


REFUSALS = dict(
    method=lambda: draw('cdstde', oracle(), Y),
    option=lambda: ask('cdtsde', etta=1.0),
    eta=lambda: ask('cdtsde', eta=2.0),
    noise_rule=lambda: ask('cdtsde', tau='euler'),
    noise_rule_of_heun=lambda: ask('ddbm_vp', tau='zero'),
    grid_name=lambda: ask('cdtsde', grid='log'),
    grid_rises=lambda: ask('cdtsde', grid=[1.0, 0.5, 0.6, 0.0]),
    grid_ends_early=lambda: ask('cdtsde', grid=[1.0, 0.5]),
    sampler=lambda: ask('cdtsde', sampler='rk4'),
    start=lambda: ask('cdtsde', start='noise'),
    clip=lambda: ask('cdtsde', clip=1),
    stop=lambda: ask('selfrdb', stop=-1.0),
    too_many_steps=lambda: ask('syndiff', steps=9),
    too_many_entries=lambda: ask('i2sb', steps=1000),
    no_step=lambda: solve('step', 'cdtsde', grids['uniform'](0)),
    order=lambda: solve('step', 'cdtsde', order=3),
    order_of_dossr=lambda: solve('dossr', 'dossr', order=4),
    order_of_dbim=lambda: solve('dbim', 'dbim', 'dbim', order=0),
    order_with_noise=lambda: solve('dbim', 'dbim', 'dbim', order=2, tau=rules['markov']),
    factor=lambda: solve('dual', 'abridge', factor='both'),
    source_is_lost=lambda: solve('dual', 'diffusion'),
    heun_elsewhere=lambda: solve('heun', 'cdtsde'),
    heun_from_one=lambda: solve('heun', 'ddbm_vp'),
    churn=lambda: solve('heun', 'ddbm_vp', 'karras', churn=1.0),
    score_grid=lambda: solve('score', 'abridge_score', [1.0, 0.3, 0.0]),
    first=lambda: solve('score', 'abridge_score', first='last'),
    amplitude=lambda: solve('unmatched', 'bbdm', amplitude='loud'),
    out=lambda: solve('step', 'cdtsde', out='both'),
    shapes=lambda: solve('step', 'cdtsde', x=Y[:1]),
    seeds=lambda: solve('step', 'cdtsde', seeds=[1, 2, 3]),
    share=lambda: scaled(rules['markov'], -1.0),
    bridge_option=lambda: make_bridge('cdtsde', 1, squish=2),
    bridge_word=lambda: make_bridge('selfrdb', 1, prior='hard'),
    network=lambda: build('cdtsde', arch='resnet'),
    blind_network=lambda: build('cdtsde', arch='unet256'),
    network_size=lambda: build('cdtsde', net=dict(ch=8, mults=[1, 2], depth=3)),
    prediction=lambda: build('cdtsde', net=SIZES['unet'], pred='score'),
    options_text=lambda: parse_options('eta'),
    options_twice=lambda: parse_options('eta=1,eta=2'),
    options_json=lambda: parse_options('{eta: 1}'),
    options_of_nobody=lambda: split_options('dossr', dict(ordr=2)),
    recipe_steps=lambda: Recipe(steps=0),
    recipe_schedule=lambda: Recipe(schedule='linear'),
    recipe_precision=lambda: Recipe(precision='int8'),
    window_rule=lambda: window_of(np.ones((3, 3)), 'percent'),
    window_empty=lambda: window_of(np.ones((3, 3)), 'minmax'),
    window_backwards=lambda: window_of(np.ones((3, 3)), '5:2'),
    no_model=lambda: Translator.from_pretrained(work() / 'nowhere', 'cpu'),
    device=lambda: Translator.from_pretrained(KEPT, 'tpu'),
    no_config=lambda: damaged(None),
    no_weights=lambda: damaged(None, 'model.safetensors'),
    format_2=lambda: damaged(replaced(b'"format": 1', b'"format": 2')),
    config_size=lambda: damaged(replaced(b'"size": 16', b'"size": 0')),
    config_option=lambda: damaged(replaced(b'"options": {}', b'"options": {"etta": 1}')),
    config_network=lambda: damaged(replaced(b'"ch": 4', b'"ch": 8')),
    weights_changed=lambda: damaged(lambda b: b[:-4] + b'abcd', 'model.safetensors'),
    noise=lambda: say_maps('kept', noise='loud'),
    steps=lambda: say_maps('kept', steps=0),
    samples=lambda: say_maps('kept', samples=0),
    batch=lambda: say_maps('kept', batch=1.5),
    wish=lambda: say_maps('kept', target=dict(TE=100.0)),
    kind_of_source=lambda: say_maps('kept', [1, 2]),
    missing_scan=lambda: say_maps('kept', work() / 'missing.nii.gz'),
    broken_scan=lambda: say_maps('kept', broken('broken.nii')),
    another_modality=lambda: say_maps('kept', scan(work() / 'sub-9_T2w.nii.gz')),
    no_place=lambda: say_maps('kept', lost_scan()),
    picture_for_volumes=lambda: say_maps('kept', source_of('png')),
    volume_for_pictures=lambda: say_maps('png', source_of('kept')),
    tensor_channels=lambda: say_maps('kept', torch.zeros(2, 3, 16, 16)),
    tensor_range=lambda: say_maps('kept', torch.full((2, 1, 16, 16), 7.0)),
    array_of_words=lambda: say_maps('kept', np.array([['a']])),
    array_empty=lambda: say_maps('kept', np.zeros((0, 16), np.float32)),
    pixels_with_holes=lambda: say_maps('png', np.full((16, 16), np.nan, np.float32)),
    colours=lambda: say_maps('png', np.zeros((16, 16, 3), np.uint8)),
)


def refusal(name):
    "What is raised, and its whole text."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            REFUSALS[name]()
        except ValueError as e:
            return dict(kind=type(e).__name__, text=tidy(str(e)))
    return dict(kind='nothing', text='')


REFUSED = dict(
    translate_no_model=(xmodal_main, 'translate nowhere in.nii.gz out.nii.gz --device cpu'),
    translate_no_input=(xmodal_main, 'translate MODEL in.nii.gz out.nii.gz --device cpu'),
    translate_wish=(xmodal_main, 'translate MODEL in.nii.gz out.nii.gz --device cpu --target TE'),
    translate_no_flag=(xmodal_main, 'translate MODEL in.nii.gz out.nii.gz --stepz 3'),
    translate_labels=(xmodal_main, 'translate MODEL a b --device cpu --participant-label 01'),
    evaluate_nothing=(xmodal_main, 'evaluate nowhere elsewhere'),
    evaluate_masks=(xmodal_main, 'evaluate a b --masks --hu=-1000:1000'),
    evaluate_classes=(xmodal_main, 'evaluate a b --classes 1:dark'),
    report_nothing=(xmodal_main, 'report nowhere'),
    data_unknown=(xmodal_main, 'data info no_such_set'),
    data_missing=(xmodal_main, 'data check bids --root nowhere'),
    train_method=(train_main, '--method cdstde'),
    train_number=(train_main, '--steps many'),
    train_switch=(train_main, '--smoke maybe'),
    train_low=(train_main, '--size 8'),
    train_option=(train_main, '--method ddbm_vp --options eta=0.5'),
    train_objective=(train_main, '--method selfrdb --options r1_every=0'),
    train_batch=(train_main, '--batch 5 --accumulate 2'),
    train_network=(train_main, '--net unet256'),
    train_prompts=(train_main, '--text loud'),
    train_names=(train_main, '--name a/b'),
    train_both=(train_main, '--resume --overwrite'),
    train_data=(train_main, '--dataset no_such_set'),
    train_no_data=(train_main, '--dataset bids --root nowhere'),
    train_no_flag=(train_main, '--stepz 3'),
)


def refused_command(name):
    "Exit code and last line of a command that is refused."
    run, words = REFUSED[name]
    words = [model_folder('kept') if w == 'MODEL' else w for w in words.split()]
    place = work() / 'empty'
    place.mkdir(exist_ok=True)
    with contextlib.chdir(place):
        code, _, err = command(run, *words)
    return dict(code=code, said=tidy((err.strip().splitlines() or [''])[-1]))


# --- comparing and keeping


# --- measures


def window_rule(rule):
    "Both ends of the window of one skewed image, in its own units."
    w = window_of(np.linspace(0, 30, 4001) ** 2, rule)
    return dict(low=w.lo, high=w.hi)


def line_masks(off):
    "`xmodal evaluate --masks` without a tolerance, for a line that lies beside the true one."
    folder = work() / f'line_masks_{off}'
    for name, row in (('pred', 8 + off), ('truth', 8)):
        mask = np.zeros((24, 24), np.uint8)
        mask[row, 3:21] = 255
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / name / 'a_01.png')
    words = ['evaluate', folder / 'pred', folder / 'truth', '--masks']
    code, said, err = command(xmodal_main, *words)
    return dict(code=code, said=tidy(said), err=tidy(err))


@contextlib.contextmanager
def quiet():
    "No bars, no warnings, no figures that stay open; the place of a warning's text is kept."
    said = warnings.formatwarning
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter('ignore')
        try:
            yield
        finally:
            warnings.formatwarning = said


def catalogue() -> dict:
    "Every item by name, and the function that makes it: () -> dict of arrays, numbers and words."
    found = {'names': names, 'defaults': defaults, 'kept_model': kept_model}
    for what in (
        method_row,
        method_bridge,
        method_oracle,
        method_network,
        method_loss,
        method_training,
    ):
        for n in methods:
            if what is method_loss and methods[n].adversarial:
                continue  # critics have losses of their own, see the training
            key = f'method/{n}/{what.__name__.removeprefix("method_")}'
            found[key] = functools.partial(what, n)
    for n, (method, how) in DRAWS.items():
        found[f'draw/{n}'] = functools.partial(method_network, method, **how)
    for n, (method, how) in BRIDGES.items():
        found[f'bridge/{n}'] = functools.partial(method_bridge, method, **how)
    for what, choices in (
        (solver, SOLVERS),
        (grid_row, grids),
        (estimate, predictions),
        (loss_kind, losses),
        (objective, objectives),
        (recursion, (2, 3, 6)),
        (other_network, ('latent_vector', 'autoencoder', 'two_channels')),
        (translation, TRANSLATIONS),
        (command_help, COMMANDS),
        (intervals, ('draws', 'once')),
        (array_in_python, ('array', 'tensor', 'nibabel', 'picture', 'pixels')),
        (module_help, (XMODAL, TRAIN)),
        (refusal, REFUSALS),
        (refused_command, REFUSED),
        (window_rule, ('percentile', 'minmax')),
        (line_masks, (2, 3)),  # within the usual tolerance of 2, and beyond
    ):
        for n in choices:
            found[f'{what.__name__}/{n}'] = functools.partial(what, n)
    for name, parts in RUN_PARTS.items():
        for part in (*parts, *EVERY_RUN):
            found[f'run/{name}/{part}'] = functools.partial(run_item, name, part)
    return found


def made(make) -> dict:
    "An item as it is kept: arrays, and what JSON holds."
    got = make()
    return {k: v if isinstance(v, np.ndarray) else plain(v) for k, v in got.items()}


@functools.cache
def stored() -> dict:
    "The goldens: item -> part -> value."
    if not TEXTS.is_file():
        return {}
    found = json.loads(TEXTS.read_text(encoding='utf-8'))
    for file in sorted(HERE.glob('*.safetensors')):
        for key, v in load_file(file).items():
            item, part = key.split('#')
            found[item][part] = v
    return found


def write(prefix=''):
    "Make the items whose names begin with `prefix` anew."
    if not KEPT.exists():
        new_folder(KEPT, VOLUME)
    keep = {k: v for k, v in stored().items() if not k.startswith(prefix)}
    for k, make in catalogue().items():
        if k.startswith(prefix):
            keep[k] = made(make)
    texts, arrays = {}, {}
    for item in sorted(keep):
        texts[item] = {}
        for part, v in keep[item].items():
            if isinstance(v, np.ndarray):
                file = arrays.setdefault(item.split('/')[0], {})
                file[f'{item}#{part}'] = np.ascontiguousarray(v)
            else:
                texts[item][part] = v
    HERE.mkdir(exist_ok=True)
    for old in HERE.glob('*.safetensors'):
        old.unlink()
    for name, file in arrays.items():
        save_file(file, HERE / f'{name}.safetensors')
    lines = [f'{json.dumps(k)}: {json.dumps(v, sort_keys=True)}' for k, v in texts.items()]
    TEXTS.write_text('{\n' + ',\n'.join(lines) + '\n}\n', encoding='utf-8')


def far(got, want, where) -> list:
    "How two arrays differ, in words; []: they do not."
    if got.dtype != want.dtype or got.shape != want.shape:
        return [f'{where}: {got.dtype} {got.shape}, golden {want.dtype} {want.shape}']
    if EXACT:
        return [] if got.tobytes() == want.tobytes() else [f'{where}: other bits']
    a, b = got.astype(np.float64), want.astype(np.float64)
    size = np.abs(b[np.isfinite(b)]).max(initial=0.0)
    if where.endswith('lines'):  # a line for each tensor
        floor = 0.1 if 'heard' in where else 1e-3
        size = np.maximum(np.abs(b).max(1, keepdims=True), floor * size)
        size = 1e3 + 0 * size if 'deaf' in where else size  # ten steps of 1e-3
    near = RTOL * np.abs(b) + ATOL * size + (1.0 if want.dtype.kind in 'iu' else 0.0)
    with np.errstate(invalid='ignore'):
        wrong = ~((np.abs(a - b) <= near) | (a == b) | (np.isnan(a) & np.isnan(b)))
    if not wrong.any():
        return []
    worst = float(np.nanmax(np.abs(a - b)))
    return [
        f'{where}: {wrong.sum()} of {wrong.size} numbers differ, by up to {worst:.3g} '
        f'(largest in golden {float(np.max(size)):.3g})'
    ]


ROUNDED = dict(grad_norm=1.5e-3, val_psnr=1.5e-3, mix_=3e-4)  # a log writes few digits


def differences(got, want, where='') -> list:
    "How two values differ, in words; []: they do not."
    if isinstance(want, np.ndarray) and isinstance(got, np.ndarray):
        return far(got, want, where)
    if isinstance(want, dict) and isinstance(got, dict):
        lost = [f'{where}/{k}: is gone' for k in want if k not in got]
        new = [f'{where}/{k}: is new' for k in got if k not in want]
        both = (differences(got[k], want[k], f'{where}/{k}') for k in want if k in got)
        return sum(both, lost + new)
    if where.endswith('flags'):  # more may come, none may go
        return [f'{where}: {k} is gone' for k in want if k not in got]
    if isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        each = (differences(*v, f'{where}[{k}]') for k, v in enumerate(zip(got, want)))
        return sum(each, [])
    if isinstance(want, float) and isinstance(got, float) and not EXACT:
        rtol = next((v for k, v in ROUNDED.items() if k in where), RTOL)
        same = abs(got - want) <= rtol * abs(want) + 1e-12 or got != got and want != want
        return [] if same else [f'{where}: {got!r}, golden {want!r}']
    if where.endswith('sha256') and not EXACT:
        return []
    same = type(got) is type(want) and (got == want or got != got and want != want)
    return [] if same else [f'{where}: {got!r}, golden {want!r}']


@pytest.mark.parametrize('item', sorted({*catalogue(), *stored()}))
def test_golden(item):
    "What an item gives is what it gave when it was frozen."
    make, want = catalogue().get(item), stored().get(item)
    assert make is not None, f'{item} is frozen, and this version has nothing of that name'
    assert want is not None, f'{item} is new: freeze it with --write {item}'
    wrong = differences(made(make), want)
    more = f'\n... and {len(wrong) - 20} more' if len(wrong) > 20 else ''
    assert not wrong, f'{item} differs from its golden:\n' + '\n'.join(wrong[:20]) + more


def main():
    "Write the goldens."
    if len(sys.argv) not in (2, 3) or sys.argv[1] != '--write':
        sys.exit('usage: python tests/test_goldens.py --write [BEGINNING OF NAMES]')
    write(*sys.argv[2:])
    size = sum(p.stat().st_size for p in HERE.rglob('*') if p.is_file())
    print(f'{len(catalogue())} items, {size / 1e6:.2f} MB in {HERE.name}')


if __name__ == '__main__':
    main()
