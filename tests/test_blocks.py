"A network of volumes: its blocks, the same grid in training and in use, and back to the file."

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from small_model import VOLUME, Echo, trained_by_command

from xmodal.core import InputError
from xmodal.data.cache import blocks_around, prepare, spans_of, volumes_of
from xmodal.data.frames import Cutting, VolumeFrame
from xmodal.data.layouts import find_records
from xmodal.data.records import Record
from xmodal.data.volumes import slices_between
from xmodal.engine import Sampling, of_volumes
from xmodal.nets.build import build
from xmodal.training.loop import Draws, measure_scale
from xmodal.translate import SampleOptions, Translator, draws


def answering(net, **data):
    "A translator of blocks of 8 x 16 x 16 whose network is this one; a bridge without a field."
    den = build('bbdm', 1, net=dict(ch=8, mults=(1, 2)), pred='x0')
    den.net = net
    about = dict(VOLUME, spacing=2.0, size=16, step=3.0, depth=8, **data)
    return Translator(den.eval(), dict(model=dict(method='bbdm', channels=1), data=about))


def head(seed, shape, zooms, contrast=1.0, top=None):
    "A volume without any symmetry, bright in an ellipse; above slice `top` it is empty."
    z = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing='ij'))
    values = np.clip(400 + 2000 * z, 1, None) ** contrast * ((grid**2).sum(0) < 1.2)
    values[..., top:] = 0 if top else values[..., top:]
    return nib.Nifti1Image(values.astype(np.float32), np.diag([*zooms, 1.0]))


def saved(folder, name, seed, shape=(24, 24, 14), zooms=(2.0, 2.0, 3.0), top=None):
    path = folder / name / 'anat' / f'{name}_T1w.nii.gz'
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(head(seed, shape, zooms), path)
    target = path.with_name(f'{name}_T2w.nii.gz')
    nib.save(head(seed, shape, zooms, 0.9, top), target)
    return Record(name, name, path, target)


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    "Three people alike, one with slices of 1 mm, one whose target ends early, one of four slices."
    folder = tmp_path_factory.mktemp('blocks')
    fine, flat = dict(shape=(24, 24, 40), zooms=(2.0, 2.0, 1.0)), dict(shape=(24, 24, 4))
    other = {3: fine, 4: dict(top=8), 5: flat}
    return [saved(folder, f'sub-{k}', k, **other.get(k, {})) for k in range(6)]


@pytest.fixture(scope='module')
def data(people, tmp_path_factory):
    cache = tmp_path_factory.mktemp('cache')
    return prepare(people, 0, cache=cache, progress=False, depth=8, air=4)


def test_a_block_is_the_slices_around_a_pair_and_never_leaves_its_volume(data):
    assert data.index['params']['step'] == 3.0 and data.index['params']['depth'] == 8
    spans = spans_of(data.index)
    assert [b - a for a, b in spans.values()] == [14, 14, 14, 14, 14, 4]  # 40 mm at about 3 mm
    blocks = blocks_around(data, 8)
    assert len(blocks) == len(data)
    for k in range(0, len(data), 7):
        (first, stop), info = blocks.spans[k], data.info(k)
        low, high = spans[info['record']]
        assert low <= first <= data.items[k] < stop <= high
        at = data.items[k] - first
        seen = blocks[k]['y'][:, at]
        assert torch.equal(seen, data[k]['y']) and blocks[k]['y'].shape[1] == 8
        inside = low + 4 <= data.items[k] < high - 4
        assert at == 4 or not inside


def test_what_is_filled_up_or_seen_on_one_side_does_not_count(data):
    valid = {s: v['valid'] for s, v in zip(spans_of(data.index), volumes_of(data))}
    per_slice = valid['sub-4'].flatten(2).float().mean(2)[0]
    assert per_slice[3:7].min() == 1 and per_slice[8:11].max() == 0  # the target ends there
    assert bool(valid['sub-1'].all())
    flat = blocks_around(data.select(['sub-5']), 8)[0]
    assert flat['valid'][0, :, 0, 0].tolist() == [True] * 4 + [False] * 4
    assert torch.equal(flat['y'][:, 4:], flat['y'][:, 3:4].expand(-1, 4, -1, -1))
    assert float(flat['x0'][:, 4:].max()) == -1  # no error can come from there


def test_samples_hang_on_their_number_alone(data):
    blocks = blocks_around(data, 8)
    one, other = Draws(blocks, 3, patch=16), Draws(blocks, 3, patch=16)
    want = {n: one[n] for n in (5, 0, 130)}
    for n in (130, 5, 0):
        got = other[n]
        assert got['y'].shape == (1, 8, 16, 16) and got['valid'].shape == (1, 8, 16, 16)
        assert all(torch.equal(got[k], want[n][k]) for k in got)


def test_a_scale_is_measured_on_as_many_slices_as_of_pictures(data, monkeypatch):
    blocks, read = blocks_around(data, 8), []
    monkeypatch.setattr(type(blocks), '__getitem__', counted(type(blocks).__getitem__, read))
    got, flat = measure_scale(blocks, 40), measure_scale(data, 40)
    assert len(set(read)) <= 1 + 40 // 8
    assert all(abs(got[k] - flat[k]) < 0.1 for k in got)


def counted(ask, read):
    return lambda self, k: read.append(k) or ask(self, k)


@pytest.mark.parametrize('who', [0, 3])
def test_a_translation_is_shown_what_the_training_was(people, data, who):
    params = data.index['params']
    how = dict(spacing=params['spacing'], step=params['step'], depth=8)
    frame = VolumeFrame(
        people[who].source, Cutting('volume', params['size'], 'percentile', **how), 1
    )
    y = torch.from_numpy(frame.cut())[0]
    assert frame.in_one and len(frame.names('independent')) == 1
    assert torch.allclose(volumes_of(data)[who]['y'], y, atol=1e-6)


@pytest.mark.parametrize('code', ['RAS', 'LPI', 'SAL', 'PIR'])
@pytest.mark.parametrize('step', [2.0, 3.0])
def test_a_volume_comes_back_to_its_own_voxels(code, step, tmp_path):
    axes = nib.orientations
    turn = axes.ornt_transform(axes.axcodes2ornt('RAS'), axes.axcodes2ornt(code))
    smooth = gaussian_filter(head(5, (22, 26, 19), (2.0, 2.0, 2.0)).get_fdata(), 2)
    img = nib.Nifti1Image(smooth.astype(np.float32), np.diag([2.0, 2, 2, 1])).as_reoriented(turn)
    nib.save(img, tmp_path / 'a.nii.gz')
    tr = answering(Echo(), target_dtype='float32')
    tr.data = replace(tr.data, step=step, target_window=(0.0, 1000.0))
    got = tr.translate(tmp_path / 'a.nii.gz')
    assert got.shape == img.shape and np.array_equal(got.affine, img.affine)
    error = np.abs(np.asarray(got.dataobj) - img.get_fdata()).max() / smooth.max()
    assert error < (1e-3 if step == 2 else 0.15)


def test_a_grid_of_slices_ends_where_the_volume_ends():
    for count, step in ((40, 3.0), (182, 3.0), (9, 0.5), (48, 1.0), (2, 9.0), (1, 2.0)):
        n, found = slices_between(count, step)
        assert (n - 1) * found == pytest.approx(count - 1)
        assert count < 9 or abs(found / step - 1) < 0.1
    assert slices_between(48, 1.0) == (48, 1.0)


class Counting(torch.nn.Module):
    "A network of volumes that counts what it is asked, and how large its blocks are."

    config = dict(channels=1)

    def __init__(self):
        super().__init__()
        self.seen, self.weight = [], torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, t, y, ctx=None):
        self.seen += [tuple(x.shape[1:])] * len(x)
        return 0.5 * x + 0.2 * y


def test_every_block_is_asked_once_at_every_step_and_the_noise_is_one():
    tr, y = answering(Counting()), torch.randn(1, 1, 22, 24, 16).numpy()
    how = dict(steps=3, batch=2, overlap=0.25)
    got = draws(tr, y, SampleOptions(**how))['mean']
    assert len(tr.den.net.seen) == 3 * 4 * 2  # steps x blocks along slices x along rows
    assert set(tr.den.net.seen) == {(1, 8, 16, 16)}
    again = draws(tr, y, SampleOptions(steps=3, batch=5, overlap=0.5))['mean']
    np.testing.assert_allclose(got, again, atol=1e-5)  # pixel by pixel: no tiling can be seen


def test_measured_slices_are_cut_out_of_whole_volumes(data):
    den = answering(Counting()).den
    some = data.view(data.items[[3, 40, 9]])
    how = Sampling('bbdm', 2, 'markov', {}, 16, 8)
    got = of_volumes(den, some, how, seed=1)
    assert set(den.net.seen) == {(1, 8, 16, 16)}
    assert got.shape == (3, 1, *data.shape[-2:])
    volume = of_volumes(den, data.select([data.info(3)['subject']]), how, seed=1)
    assert np.array_equal(got[0], volume[3]) and np.array_equal(got[2], volume[9])


def test_data_that_have_no_blocks_are_refused(people, tmp_path):
    single = prepare(people[:1], 0, cache=tmp_path, progress=False)
    with pytest.raises(InputError, match='prepare it with a depth'):
        blocks_around(single, 8)
    for more in (dict(plane='all'), dict(context=1)):
        with pytest.raises(InputError, match='depth cuts blocks in one plane, without context'):
            prepare(people[:1], 0, cache=tmp_path, depth=8, **more)


@pytest.fixture(scope='module')
def trained(people, tmp_path_factory):
    "A network of volumes after two steps."
    pytest.importorskip('monai')
    root = tmp_path_factory.mktemp('run')
    words = (
        f'--dataset bids --root {people[0].source.parents[2]} --source T1w --target T2w --size 0 '
        '--net unet3d --patch 16 --steps 2 --batch 2 --ch 8 --mults 1,2 --check False --method '
        'cdtsde_linear --sample_steps 2 --train_subjects sub-0,sub-1,sub-3 --test_subjects sub-2 '
        '--channels_last True --precision bf16'
    )
    return trained_by_command(root, 'solid', words)


def test_a_training_ends_with_metrics_and_a_model_that_says_what_it_is(trained):
    model, said = trained
    assert 'learns from blocks of 8 x 16 x 16 voxels' in said
    assert 'brought to 3 mm' in said
    config = json.loads((model / 'config.json').read_text())
    about = config['data']
    assert (about['depth'], about['step'], about['tile'], about['kind']) == (8, 3.0, 16, 'volume')
    assert (
        config['model']['arch'] == 'unet3d'
        and 'in blocks of 8 slices' in (model / 'README.md').read_text()
    )
    metrics = json.loads((model.parent / 'metrics.json').read_text())
    assert {'cdtsde_linear', 'regression', 'identity'} <= set(metrics['scores'])


def test_a_trained_model_translates_files_and_arrays_and_refuses_tensors(people, trained):
    tr = Translator.from_pretrained(trained[0], 'cpu')
    assert 'blocks of 8 x 16 x 16' in repr(tr)
    for who, words in ((3, 'resampled to 3 mm'), (5, 'a block of 4 slices')):
        with pytest.warns(UserWarning, match=words):
            got = tr.maps(people[who].source, batch=3, samples=2, mix=True, progress=True)
        assert got['mean'].shape == nib.load(people[who].source).shape
        assert got['mix'].shape[-1] == 3 and np.isfinite(got['std'].get_fdata()).all()
    rows = np.random.default_rng(0).normal(400, 100, (9, 24, 24)).astype(np.float32)
    assert tr.translate(rows).shape == rows.shape
    with pytest.raises(InputError, match='give a file'):
        tr.translate(torch.zeros(1, 1, 16, 16))
    with pytest.raises(InputError, match='need a model of all planes'):
        tr.translate(people[0].source, planes='axial')
    with pytest.raises(InputError, match='for pictures and slices take unet'):
        tr.run(torch.zeros(2, 1, 16, 16).numpy())


def test_pictures_are_refused_before_they_are_looked_at(tmp_path, monkeypatch):
    pytest.importorskip('monai')
    from PIL import Image

    from xmodal.job import Job
    from xmodal.train import find_pairs, plan

    monkeypatch.chdir(tmp_path)
    for k in range(6):
        for side in 'AB':
            (tmp_path / 'pairs' / side).mkdir(parents=True, exist_ok=True)
            Image.new('L', (32, 32)).save(tmp_path / 'pairs' / side / f's{k}.png')
    root = str(tmp_path / 'pairs')
    assert len(find_records('folder', root, 'A', 'B')) == 6
    job = Job(dataset='folder', root=root, net='unet3d', method='bbdm', ch=8, mults='1,2')
    with pytest.raises(InputError, match='folder holds pictures; use net unet'):
        find_pairs(plan(job))
