"""What pictures are kept in, in and out: the shared cases 01, 05, 06, 07, 08 and 22, small."""

import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from xmodal import translate
from xmodal.core import InputError
from xmodal.data import images
from xmodal.data.cache import prepare, without_holes
from xmodal.data.check import check
from xmodal.data.frames import frame_of
from xmodal.data.images import load_image
from xmodal.data.layouts import find_records
from xmodal.data.records import Record
from xmodal.engine import measure_images
from xmodal.folders import translate_paths
from xmodal.methods import get_method, methods
from xmodal.nets.anchor import build_anchored as build
from xmodal.train import common_nodata
from xmodal.training.adversarial import LossInputs
from xmodal.training.loop import Draws, PairLoss, cropped, psnr_of
from small_model import IMAGE, TINY, echo
from test_wrong_in_silence_translate import said

rng = np.random.default_rng(0)


# --- case 01: the place on earth


def scene(path, bands=1, dtype='float32', nodata=None, crs='EPSG:32633', **more):
    "A GeoTIFF with a transform that no short number writes."
    rasterio = pytest.importorskip('rasterio')
    from rasterio.transform import Affine

    place = Affine(10 / 3, 0.1, 499980.123456789, 0.1, -10 / 3, 5e6 + 1 / 7)
    how = dict(driver='GTiff', height=16, width=16, count=bands, dtype=dtype, nodata=nodata)
    x = (rng.random((bands, 16, 16)) * 200).astype(dtype)
    with rasterio.open(path, 'w', crs=crs, transform=place, **how, **more) as f:
        f.write(x)
    return x


def floats(**more):
    "A translator that answers with its source, for floating-point pictures of one band."
    return echo(IMAGE, source_window='0:200', target_window=[0.0, 200.0], **more)


@pytest.mark.parametrize('kind', ['uint8', 'uint16', 'int16', 'float32'])
def test_a_translation_lies_on_its_source(tmp_path, kind):
    rasterio = pytest.importorskip('rasterio')
    scene(tmp_path / 'a.tif', nodata=-9999 if kind == 'int16' else None)
    with rasterio.open(tmp_path / 'a.tif', 'r+') as f:
        f.update_tags(AREA_OR_POINT='Point')
    tr = floats(target_dtype=kind)
    how = dict(samples=2, mix=True, progress=False)
    translate_paths(tr, tmp_path / 'a.tif', tmp_path / 'b.tif', **how)
    with rasterio.open(tmp_path / 'a.tif') as a:
        for name in ('b', 'b_std', 'b_mix'):
            with rasterio.open(tmp_path / f'{name}.tif') as b:
                assert (a.crs, a.transform, a.shape) == (b.crs, b.transform, b.shape)
                assert name == 'b_mix' or b.count == 1
                assert b.dtypes[0] == (kind if name == 'b' else 'float32')
                assert b.nodata == (a.nodata if name == 'b' else None)


def test_ground_control_points_come_along(tmp_path):
    rasterio = pytest.importorskip('rasterio')
    from rasterio.control import GroundControlPoint as Point

    points = [Point(0, 0, 10.0, 50.0), Point(0, 16, 10.1, 50.0), Point(16, 0, 10.0, 49.9)]
    with rasterio.open(
        tmp_path / 'a.tif', 'w', driver='GTiff', height=16, width=16, count=1, dtype='float32'
    ) as f:
        f.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
        f.write(rng.random((1, 16, 16), np.float32))
    translate_paths(floats(), tmp_path / 'a.tif', tmp_path / 'b.tif', progress=False)
    with rasterio.open(tmp_path / 'a.tif') as a, rasterio.open(tmp_path / 'b.tif') as b:
        assert [(p.row, p.col, p.x, p.y) for p in a.gcps[0]] == [
            (p.row, p.col, p.x, p.y) for p in b.gcps[0]
        ]
        assert a.gcps[1] == b.gcps[1]


def test_what_of_a_place_is_lost_is_said(tmp_path, monkeypatch):
    "A nodata value that the type does not have, PNG, and the extra that is not installed."
    scene(tmp_path / 'a.tif', nodata=-9999)
    go = lambda out: translate_paths(
        floats(target_dtype='uint8'), tmp_path / 'a.tif', tmp_path / out, progress=False
    )
    _, words = said(lambda: go('b.tif'))
    assert any('-9999 is not carried over, uint8 has no such number' in t for _, t in words)
    _, words = said(lambda: go('b.png'))
    assert any('PNG has none' in t for _, t in words)
    monkeypatch.setattr(images.importlib.util, 'find_spec', lambda name: None)
    _, words = said(lambda: go('c.tif'))
    (line,) = [t for _, t in words if 'georeference' in t]
    assert "pip install 'xmodal[geo]'" in line
    note = json.loads((tmp_path / 'c.tif.json').read_text())
    assert 'georeference' in note['Changes'][0] and not note['Doubts']
    assert tifffile.imread(tmp_path / 'c.tif').dtype == np.uint8


# --- case 05: any number of channels


def pairs(root, source, target, n=4):
    "A folder of pairs: source(z) and target(z) are arrays of a smooth picture z in [0, 1]."
    from scipy.ndimage import gaussian_filter

    for side, make in (('a', source), ('b', target)):
        (root / side).mkdir(parents=True)
        for k in range(n):
            z = gaussian_filter(np.random.default_rng(k).normal(size=(32, 32)), 4)
            z = (z - z.min()) / np.ptp(z)
            make(z, root / side / f's{k}')


def bands(*powers, low=0, high=1, dtype='f4'):
    "A writer of TIFF files with one band for each power."

    def write(z, path):
        x = np.stack([low + (high - low) * z**k for k in powers], -1).astype(dtype)
        how = dict(photometric='minisblack', planarconfig='contig') if len(powers) > 1 else {}
        tifffile.imwrite(f'{path}.tif', x.squeeze(), **how)

    return write


def grey(z, path):
    Image.fromarray((z * 255).astype('u1')).save(f'{path}.png')


def prepared(root, **how):
    return prepare(
        find_records('folder', root, 'a', 'b'), 32, cache=root / 'cache', progress=False, **how
    )


def test_bands_of_radar_and_optics(tmp_path, capsys):
    sar, optic = bands(1, 2, low=-32, high=-5), bands(0.5, 1, 2, 3, low=200, high=3000, dtype='u2')
    pairs(tmp_path, sar, optic)
    windows = dict(source_window='-32:0', target_window='0:10000')
    data = prepared(tmp_path, **windows)
    assert 'the source is repeated in turn to 4' in capsys.readouterr().out
    y = data[0]['y']
    assert data.channels == 4 and (y[:2] == y[2:]).all() and (y[0] != y[1]).any()
    report = check('folder', tmp_path, 'a', 'b', progress=False, **windows)
    assert report.ok, report.lines()
    tr = echo(
        dict(IMAGE, channels=[2, 4]), 4, source_window='-32:0', target_window=[-32.0, 0.0],
        target_window_rule='-32:0', target_dtype='float32',
    )  # fmt: skip
    translate_paths(tr, tmp_path / 'a', tmp_path / 'out', progress=False)
    source, made = load_image(tmp_path / 'a' / 's0.tif'), load_image(tmp_path / 'out' / 's0.tif')
    assert made[0].shape == (4, 32, 32)
    np.testing.assert_allclose(made[0], source[0][[0, 1, 0, 1]], atol=1e-4)


def test_answers_have_the_channels_of_the_target(tmp_path):
    "Four channels of the network to two of the target: the mean of the copies."
    bands(1, 2, 3, 4, high=200)(rng.random((32, 32)), tmp_path / 'a')
    tr = echo(
        dict(IMAGE, channels=[4, 2]), 4, source_window='0:200', target_window=[0.0, 200.0],
        target_window_rule='0:200', target_dtype='float32',
    )  # fmt: skip
    x, made = load_image(tmp_path / 'a.tif')[0], tr.translate(tmp_path / 'a.tif')
    np.testing.assert_allclose(made[..., 0], (x[0] + x[2]) / 2, atol=1e-3)
    assert made.shape == (32, 32, 2)
    with pytest.raises(InputError, match='several pages'):
        tifffile.imwrite(tmp_path / 'p.tif', np.zeros((2, 32, 32), 'f4'))
        load_image(tmp_path / 'p.tif')


@pytest.mark.parametrize('order', ['contig', 'separate'])
def test_bands_lie_as_satellites_deliver_them(tmp_path, order):
    x = rng.integers(0, 999, (2, 9, 7)).astype('u2')
    saved = x if order == 'separate' else x.transpose(1, 2, 0)
    tifffile.imwrite(tmp_path / 'a.tif', saved, photometric='minisblack', planarconfig=order)
    np.testing.assert_array_equal(load_image(tmp_path / 'a.tif')[0], x)


def test_a_fourth_band_that_gdal_calls_alpha_is_a_band(tmp_path):
    x = scene(tmp_path / 'a.tif', 4, 'uint8')
    np.testing.assert_array_equal(load_image(tmp_path / 'a.tif')[0], x)


def test_what_tifffile_cannot_unpack_rasterio_reads(tmp_path):
    x = scene(tmp_path / 'a.tif', 2, 'uint16', compress='lzw')
    np.testing.assert_array_equal(load_image(tmp_path / 'a.tif')[0], x)


# --- cases 07 and 08: palettes, JPEG, alpha, deep colour


def test_a_palette_is_its_numbers_under_a_rule_of_labels(tmp_path):
    def mask(z, path):
        m = Image.fromarray(np.digitize(z, [0.4, 0.6, 0.8]).astype('u1'), 'P')
        m.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [0] * 756)
        m.save(f'{path}.png')

    pairs(tmp_path, grey, mask)
    data = prepared(tmp_path, target_window='labels:0:3')
    levels = np.unique(np.stack([d['x0'].numpy() for d in data]).round(4))
    np.testing.assert_allclose(levels, [-1, -1 / 3, 1 / 3, 1], atol=1e-4)
    assert check('folder', tmp_path, 'a', 'b', target_window='labels:0:3', progress=False).ok
    with pytest.raises(InputError, match='labels:LO:HI or binary') as e:
        prepared(tmp_path)
    assert 'grey' not in str(e.value) and 'RGB' not in str(e.value)


def test_photographs_beside_masks(tmp_path):
    "JPEG in, PNG out; none is written as JPEG."
    pairs(
        tmp_path,
        lambda z, path: Image.fromarray((z * 255).astype('u1')).save(f'{path}.jpg'),
        lambda z, path: grey(z > 0.6, path),
    )
    data = prepared(tmp_path, target_window='binary')
    assert len(data) == 4 and set(np.unique(data[0]['x0'])) == {-1.0, 1.0}
    tr = echo(IMAGE, target_window_rule='binary')
    translate_paths(tr, tmp_path / 'a', tmp_path / 'out', progress=False)
    assert sorted(p.name for p in (tmp_path / 'out').glob('s0*')) == ['s0.png', 's0.png.json']
    with pytest.raises(InputError, match=r'must end in \.png or \.tif'):
        translate_paths(tr, tmp_path / 'a' / 's0.jpg', tmp_path / 'out.jpg', progress=False)


def test_a_photograph_is_turned_upright(tmp_path):
    im = Image.fromarray(rng.integers(0, 255, (8, 16), np.uint8))
    exif = im.getexif()
    exif[0x0112] = 6
    im.save(tmp_path / 'a.jpg', exif=exif)
    words = []
    x = load_image(tmp_path / 'a.jpg', said=words)[0][0]
    np.testing.assert_array_equal(x, np.rot90(np.asarray(Image.open(tmp_path / 'a.jpg')), -1))
    assert words == ['is turned upright by its EXIF orientation']
    exif[0x0112] = 9  # no orientation at all
    im.save(tmp_path / 'b.jpg', exif=exif)
    words = []
    assert load_image(tmp_path / 'b.jpg', said=words)[0].shape == (1, 8, 16) and not words
    _, told = said(lambda: echo(IMAGE).translate(tmp_path / 'a.jpg'))
    assert any('turned upright' in t for _, t in told)


def test_an_opaque_alpha_channel_is_left_out(tmp_path, capsys):
    pairs(tmp_path, lambda z, path: grey(z, path), grey)
    for p in (tmp_path / 'a').glob('*.png'):
        Image.open(p).convert('LA').save(p)
    data = prepared(tmp_path)
    assert data.channels == 1
    assert 's0.png and 3 more: its alpha channel is opaque' in capsys.readouterr().out


def test_deep_colour_is_read_by_an_extra_or_refused(tmp_path, monkeypatch):
    rasterio = pytest.importorskip('rasterio')
    x = rng.integers(0, 65535, (3, 9, 7)).astype('u2')
    how = dict(driver='PNG', width=7, height=9, count=3, dtype='uint16')
    with rasterio.open(tmp_path / 'a.png', 'w', **how) as f:
        f.write(x)
    got, dtype = load_image(tmp_path / 'a.png')
    np.testing.assert_array_equal(got, x)
    assert dtype == np.uint16
    monkeypatch.setattr(images.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match=r"16-bit colour PNG.*pip install 'xmodal\[geo\]'"):
        load_image(tmp_path / 'a.png')


# --- case 06: what was not measured


def holed(powers, rows, **more):
    "A writer of TIFF files whose first rows are NaN."
    write = bands(*powers, **more)

    def torn(z, path):
        write(np.where(np.arange(len(z))[:, None] < rows, np.nan, z), path)

    return torn


def test_pairs_with_holes_say_where_both_were_measured(tmp_path):
    pairs(tmp_path, holed([1], 3, low=-25, high=0), holed([2], 6))
    how = dict(source_window='-25:0', target_window='0:1')
    data = prepared(tmp_path, **how)
    item = data[0]
    assert not item['valid'][0, :6].any() and item['valid'][0, 6:].all()
    assert (item['x0'][:, :6] == -1).all() and (item['y'][:, :3] == -1).all()
    assert item['y'].isfinite().all() and (item['y'][:, 3:6] != -1).any()
    assert check('folder', tmp_path, 'a', 'b', progress=False, **how).ok
    torn = without_holes(dict(y=item['x0'] * torch.nan, x0=item['y']))
    assert (torn['x0'] == -1).all()  # nothing of a target without its source
    z = np.full((1, 64, 64), 0.25, 'f4')
    z[:, :7] = np.nan
    small = images.to_square(z, 32)
    assert np.isnan(small[:, :3]).all() and np.allclose(small[:, 4:], 0.25)


def test_a_hole_in_a_further_source_takes_nothing_from_the_pair(tmp_path):
    "It is filled and said in training and use, and crops cut the mask with the images."
    x = (rng.random((4, 32, 32)) * 200).astype('f4')
    x[0, 20:] = np.nan  # the first source
    x[1, :8] = np.nan  # the further one
    paths = [tmp_path / f'{k}.tif' for k in range(3)]
    for path, v in zip(paths, x):
        tifffile.imwrite(path, v)
    r = Record('s', 's', paths[0], paths[2], more_sources=(paths[1],))
    how = dict(source_window='0:200', target_window='0:200')
    data = prepare([r], 32, cache=tmp_path / 'cache', progress=False, **how)
    assert list(data.index['records'][0]['said_beside']) == [str(paths[1])]
    item = data[0]
    assert (item['side'][:, :8] == -1).all() and (item['side'][:, 8:] != -1).all()
    assert item['valid'][:, :20].all() and not item['valid'][:, 20:].any()
    part = cropped(item, 16, np.random.default_rng(0))
    assert part['valid'].shape == part['side'].shape == (1, 16, 16)
    assert ((part['x0'] == -1) | part['valid']).all()
    frame = frame_of(paths[0], echo(IMAGE, source_window='0:200').data, 1)
    side, words = said(lambda: frame.side([paths[1]]))
    np.testing.assert_allclose(side[0], item['side'], atol=1e-6)
    assert any(str(paths[1]) in text for _, text in words)
    sample = Draws(data, patch=16, drop=1.0)[0]
    assert (sample['side'] == -1).all() and sample['valid'].shape == (1, 16, 16)


def test_a_set_without_holes_is_as_it_was(tmp_path):
    pairs(tmp_path, grey, grey)
    data = prepared(tmp_path)
    assert set(data[0]) == {'y', 'x0', 'i'} and 'holes' not in data.index


def batch(hidden):
    "A batch for the losses; `hidden` fills what the mask hides of targets, for `without_holes`."
    gen = torch.Generator().manual_seed(0)
    x0, y = torch.rand(2, 2, 1, 16, 16, generator=gen) * 2 - 1
    x0[..., :5] = float('nan')
    items = [without_holes(dict(y=a, x0=b)) for a, b in zip(y, x0)]
    b = {k: torch.stack([v[k] for v in items]) for k in items[0]}
    b['x0'][..., :5] = hidden
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    return dict(b, t=t, noise=torch.tensor([1, 2]), n=torch.tensor([0, 1]))


class Steep(torch.nn.Module):
    "A network whose answer at a pixel is a number of its own: gradients show where a loss looks."

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1, 16, 16))

    def forward(self, x, t, y, ctx=None, **more):
        return 0 * x + self.w


PLAIN_ROWS = [k for k, m in methods.items() if not m.adversarial]


@pytest.mark.parametrize('name', PLAIN_ROWS)
def test_no_loss_sees_what_was_not_measured(name):
    "Every method that is not adversarial: no gradient under the mask, and one outside of it."
    m = get_method(name)
    den = build(name, 1, net=dict(TINY['net'], side=1) if m.anchor else TINY['net'])
    den.net, den.twin = Steep(), Steep() if den.two_networks else None
    b = batch(-1.0)
    eps = torch.randn(b['x0'].shape, generator=torch.Generator().manual_seed(1))
    more = dict(side=b['y'], valid=b['valid'])  # with further images, too
    loss = PairLoss(den, m.loss, m.weight)(b['x0'], b['y'], b['t'], eps, more=more)
    loss.backward()
    assert loss.isfinite()
    for net in filter(None, (den.net, den.twin)):
        assert (net.w.grad[..., :5] == 0).all() and (net.w.grad[..., 5:] != 0).any()


def test_an_adversarial_estimate_is_the_filler_where_nothing_was_measured():
    b = batch(-1.0)
    den, seen = echo(IMAGE).den, []
    take = lambda m, args, more: seen.append(more.pop('side')) or (args, more)
    den.register_forward_pre_hook(take, with_kwargs=True)
    s = LossInputs(
        den, None, None, b['x0'], b['y'], b['t'], None, 4, None, 2, {},
        valid=b['valid'], side=b['y'],
    )  # fmt: skip
    got = s.estimate(b['x0'], b['t'], b['y'])
    assert (got[..., :5] == -1).all() and (got[..., 5:] == b['y'][..., 5:]).all()
    assert (seen[0] == b['y']).all()  # further images reach the network through the mask


def test_no_metric_sees_what_was_not_measured(tmp_path):
    pairs(tmp_path, grey, holed([1], 6))
    data = prepared(tmp_path, target_window='0:1')
    truth = np.stack([data[i]['x0'].numpy() for i in range(len(data))])
    made = truth + 0.1
    other = made.copy()
    other[:, :, :6] = rng.random(other[:, :, :6].shape)
    a, b = (measure_images(v, data) for v in (made, other))
    np.testing.assert_array_equal(a.drop(columns='subject'), b.drop(columns='subject'))
    np.testing.assert_allclose(a['mae'], 0.05, atol=1e-6)
    assert abs(psnr_of(other[:1], truth[:1], data[0]['valid']) - 10 * np.log10(400)) < 1e-4


@pytest.mark.parametrize('kind, empty', [('float32', np.nan), ('uint16', 0), ('int16', -9999)])
def test_holes_come_out_as_holes(tmp_path, kind, empty):
    rasterio = pytest.importorskip('rasterio')
    scene(tmp_path / 'a.tif', nodata=-9999 if kind == 'int16' else None)
    with rasterio.open(tmp_path / 'a.tif', 'r+') as f:
        x = f.read()
        x[:, :4], x[:, 5, 5] = -9999 if kind == 'int16' else np.nan, 0
        f.write(x)
    translate_paths(
        floats(target_dtype=kind), tmp_path / 'a.tif', tmp_path / 'b.tif', progress=False
    )
    with rasterio.open(tmp_path / 'b.tif') as f:
        got, mask, tag = f.read(1), f.read_masks(1), f.nodata
    np.testing.assert_array_equal(got[:4], np.full((4, 16), empty, kind))
    assert np.array_equal(tag, empty, equal_nan=True)
    assert not mask[:4].any() and mask[4:].all()
    assert got[5, 5] == (1 if kind == 'uint16' else 0)


@pytest.mark.parametrize('kind', ['float32', 'int16'])
def test_the_targets_own_nodata_value_is_kept_with_the_model(tmp_path, kind):
    "Where all targets have one, holes of an answer get it, unless the source has its own."
    rasterio = pytest.importorskip('rasterio')
    for name, nodata in (('t1', -9999), ('t2', -9999), ('other', -1), ('none', None)):
        scene(tmp_path / f'{name}.tif', nodata=nodata)
    record = lambda name: Record(name, name, tmp_path / 'none.tif', tmp_path / f'{name}.tif')
    stored = common_nodata([record('t1'), record('t2')])
    assert stored == dict(target_nodata=-9999.0)
    assert common_nodata([record('t1'), record('other')]) == {} == common_nodata([record('none')])
    with rasterio.open(tmp_path / 'none.tif', 'r+') as f:
        x = f.read()
        x[:, :4] = np.nan
        f.write(x)
    tr = floats(target_dtype=kind, **stored)
    translate_paths(tr, tmp_path / 'none.tif', tmp_path / 'b.tif', progress=False)
    with rasterio.open(tmp_path / 'b.tif') as f:
        assert f.nodata == -9999 and (f.read(1)[:4] == -9999).all() and (f.read(1)[4:] > -1).all()
    tifffile.imwrite(tmp_path / 'plain.tif', x[0])  # no tag will say what the number means
    got = tr.translate(tmp_path / 'plain.tif')
    assert np.isnan(got[:4]).all() if kind == 'float32' else (got[:4] == -9999).all()


def test_holes_of_labels_take_no_class(tmp_path):
    x = np.full((16, 16), 0.1, 'f4')
    x[:4] = np.nan
    tifffile.imwrite(tmp_path / 'a.tif', x)
    how = dict(source_window='0:1', target_window_rule='labels:0:3', target_window=[0.0, 3.0])
    got, words = said(lambda: echo(IMAGE, **how).translate(tmp_path / 'a.tif'))
    assert (got[:4] == 255).all() and (got[4:] == 0).all()
    assert any('come out as 255' in t for _, t in words)
    how |= dict(target_window_rule='labels:0:255', target_window=[0.0, 255.0])
    with pytest.raises(InputError, match='no number left'):
        echo(IMAGE, **how).translate(tmp_path / 'a.tif')


@pytest.mark.parametrize(
    'kind, high, dtype, empty', [('uint8', 255, 'uint8', 127), ('bool', 1, 'uint8', 255)]
)
def test_holes_of_a_mask_have_a_number_of_their_own(tmp_path, kind, high, dtype, empty):
    x = np.full((16, 16), 0.1, 'f4')
    x[:4], x[8:] = np.nan, 0.9
    tifffile.imwrite(tmp_path / 'a.tif', x)
    how = dict(source_window='0:1', target_window_rule='binary', target_window=[0.0, high])
    tr = echo(IMAGE, **how, target_dtype=kind)
    got = tr.translate(tmp_path / 'a.tif')
    assert got.dtype == dtype and got[0, 0] == empty
    assert (got[:4] == empty).all() and (got[4:8] == 0).all() and (got[8:] == high).all()
    tifffile.imwrite(tmp_path / 'a.tif', np.nan_to_num(x))
    assert tr.translate(tmp_path / 'a.tif').dtype == kind  # without holes as ever


def test_yes_and_no_leave_no_number_for_holes(tmp_path):
    "A target of type bool and a rule of values: the same as a mask."
    x = np.ones((16, 16), 'f4')
    x[:4], x[4:8] = np.nan, 0
    tifffile.imwrite(tmp_path / 'a.tif', x)
    tr = echo(IMAGE, source_window='0:1', target_window=[0.0, 1.0], target_dtype='bool')
    got = tr.translate(tmp_path / 'a.tif')
    assert got.dtype == np.uint8 and set(np.unique(got)) == {0, 1, 255}
    assert (got[:4] == 255).all() and not got[4:8].any()


@pytest.mark.parametrize('tag', [0, 20])
@pytest.mark.parametrize('kind', ['uint8', 'float32', 'float64'])
def test_no_measured_pixel_counts_as_nodata(tmp_path, kind, tag):
    "A tag without holes: an answer that happens to have that number stays an answer."
    rasterio = pytest.importorskip('rasterio')
    scene(tmp_path / 'a.tif', dtype='float32', nodata=tag)
    with rasterio.open(tmp_path / 'a.tif', 'r+') as f:
        x = np.linspace(60, 150, 256, dtype='f4').reshape(16, 16)
        x[:4], x[4] = 50, 65  # the answer is 0, and 20
        f.write(x, 1)
    reach = dict(target_window=[0.0, 100.0], target_window_rule='0:100', target_reach=[0.0, 100.0])
    tr = echo(IMAGE, source_window='50:125', **reach, target_dtype=kind)
    translate_paths(tr, tmp_path / 'a.tif', tmp_path / 'b.tif', progress=False)
    with rasterio.open(tmp_path / 'b.tif') as f:
        got, mask, written = f.read(1), f.read_masks(1), f.nodata
    assert written == tag and (mask > 0).all()
    np.testing.assert_allclose(got[:5], np.repeat([[0.0], [20.0]], [4, 1], 0) + 0 * x[:5], atol=1)
    assert got.max() == 100
    assert (
        kind == 'uint8'
        or np.abs(got[:5] - np.repeat([0, 20], [64, 16]).reshape(5, 16)).max() < 1e-4
    )


def test_what_cannot_be_written_is_refused_before_it_is_sampled(tmp_path, monkeypatch):
    x = np.full((16, 16), 0.1, 'f4')
    x[:4] = np.nan
    tifffile.imwrite(tmp_path / 'a.tif', x)
    how = dict(source_window='0:1', target_window_rule='labels:0:255', target_window=[0.0, 255.0])
    tr = echo(IMAGE, **how)
    monkeypatch.setattr(translate, 'draws', lambda *a: pytest.fail('it was sampled'))
    with pytest.raises(InputError, match='no number left'):
        tr.translate(tmp_path / 'a.tif')


def test_a_source_that_is_gone_after_sampling_keeps_its_place(tmp_path, monkeypatch):
    scene(tmp_path / 'a.tif')
    own = translate.draws

    def draws(*args):
        (tmp_path / 'a.tif').unlink()
        return own(*args)

    monkeypatch.setattr(translate, 'draws', draws)
    place = floats().maps(tmp_path / 'a.tif')['place']
    assert place.crs.to_epsg() == 32633


def test_transparent_pixels_were_not_measured(tmp_path):
    x = np.full((8, 8, 4), 255, 'u1')
    x[:2, :, 3] = 0
    Image.fromarray(x).save(tmp_path / 'a.png')
    got = load_image(tmp_path / 'a.png', holes=True)[0]
    assert got.shape == (3, 8, 8) and np.isnan(got[:, :2]).all() and (got[:, 2:] == 255).all()
    with pytest.raises(InputError, match='pixels that its alpha channel hides') as e:
        load_image(tmp_path / 'a.png')
    assert 'NaN' not in str(e.value)


def test_bands_that_are_nowhere_measured_together_are_found(tmp_path):
    x = np.ones((16, 16, 2), 'f4')
    x[:8, :, 0], x[8:, :, 1] = np.nan, np.nan
    tifffile.imwrite(tmp_path / 'a.tif', x, photometric='minisblack', planarconfig='contig')
    with pytest.raises(InputError, match='no pixel is measured in all of its 2 channels'):
        load_image(tmp_path / 'a.tif', holes=True)


@pytest.mark.parametrize('side', [4096, 4095])
def test_large_pictures_are_shrunk_over_what_was_measured(side):
    "Over 64 times the square, blocks are averaged first: by the rule of the shrinking itself."
    x = np.full((1, side, side), 0.25, 'f4')
    x[:, rng.random((side, side)) < 0.2] = np.nan
    x[:, : side // 2] = np.nan
    got = images.to_square(x, 64)[0]
    np.testing.assert_allclose(got[34:], 0.25, atol=1e-6)
    assert np.isnan(got[:30]).all()


def test_infinite_values_stay_refused(tmp_path):
    x = np.ones((8, 8), 'f4')
    x[0, 0] = np.inf
    tifffile.imwrite(tmp_path / 'a.tif', x)
    with pytest.raises(InputError, match='NaN or infinite'):
        load_image(tmp_path / 'a.tif', holes=True)


# --- case 22: the value of pixels that nobody has labelled


def labelled(z, path):
    m = np.digitize(z, [0.4, 0.6, 0.8]).astype('u1')
    m[:2] = 255
    Image.fromarray(m).save(f'{path}.png')


def test_a_label_map_is_recognised_with_its_ignore_value(tmp_path):
    pairs(tmp_path, grey, labelled)
    report = check('folder', tmp_path, 'a', 'b', progress=False)
    (text,) = [f.text for f in report.errors if f.what == 'labels']
    assert 'looks like a label map' in text and 'target_window labels:0:3;' in text
    assert 'labels:0:3:255' in text
    how = dict(progress=False, target_window='labels:0:3:255')
    assert check('folder', tmp_path, 'a', 'b', **how).ok


def test_an_ignore_value_is_no_label(tmp_path):
    pairs(tmp_path, grey, labelled)
    data = prepared(tmp_path, target_window='labels:0:3:255')
    assert not data[0]['valid'][0, :2].any() and data[0]['valid'][0, 2:].all()
    levels = np.unique(np.stack([d['x0'].numpy()[:, 2:] for d in data]).round(4))
    np.testing.assert_allclose(levels, [-1, -1 / 3, 1 / 3, 1], atol=1e-4)
    with pytest.raises(InputError, match='labels must be whole numbers from 0 to 3'):
        prepared(tmp_path, target_window='labels:0:3')
    with pytest.raises(InputError, match='the ignore value 2 is one of the labels'):
        prepared(tmp_path, target_window='labels:0:3:2')
