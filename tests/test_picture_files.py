"""What pictures are kept in, in and out: the shared cases 01, 05, 06, 07, 08 and 22, small."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from xmodal.core import InputError
from xmodal.data import images
from xmodal.data.cache import prepare
from xmodal.data.check import check
from xmodal.data.images import load_image
from xmodal.data.layouts import find_records
from xmodal.folders import translate_paths
from small_model import IMAGE, echo
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
        tifffile.imwrite(f'{path}.tif', x, photometric='minisblack', planarconfig='contig')

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
