"Scenes: pictures that are read, translated and written by rows, as if they were held in memory."

import gc
import json
import warnings

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

from xmodal import scenes, translate
from xmodal.core import InputError
from xmodal.data.images import load_image
from xmodal.data.windows import window_of
from xmodal.folders import translate_paths
from xmodal.methods import draw
from xmodal.mixing import ChannelMix, FixedMix, SpatialMix
from xmodal.nets.build import build
from xmodal.rows import Asked, PlaceNoise, SceneSampling
from xmodal.tiles import Tiled
from xmodal.translate import Translator
from small_model import IMAGE
from test_wrong_in_silence_translate import said

rasterio = pytest.importorskip('rasterio')
rng = np.random.default_rng(0)
PATCHES = dict(size=32, fit='patch', tile=32)


@pytest.fixture
def by_rows(monkeypatch):
    "Every picture of a model of patches is a scene."
    monkeypatch.setenv('XMODAL_MAX_WHOLE', '1')


def geotiff(path, x, nodata=None, **more):
    "A GeoTIFF of an array (C, H, W)."
    where = rasterio.transform.Affine(10 / 3, 0.1, 499980.123456789, 0.1, -10 / 3, 5e6 + 1 / 7)
    sizes = dict(zip(('count', 'height', 'width'), x.shape), dtype=x.dtype.name)
    how = dict(driver='GTiff', crs='EPSG:32633', transform=where, nodata=nodata)
    with rasterio.open(path, 'w', **how, **sizes, **more) as f:
        f.write(x)
    return path


def values(bands=1, shape=(100, 90), top=3000):
    "Smooth whole numbers with some noise."
    i, j = np.indices(shape) / 40
    x = [
        top * (0.4 + 0.3 * np.sin(i + k) * np.cos(j)) + rng.normal(0, 30, shape)
        for k in range(bands)
    ]
    return np.stack(x)


def model(method='bbdm', channels=1, **data):
    "A translator of patches with random weights, which are not small."
    torch.manual_seed(0)
    den = build(method, channels, net=dict(ch=8, mults=[1, 2], layers=1)).eval()
    for p in den.net.parameters():
        nn.init.normal_(p, std=0.08)
    base = dict(IMAGE, **PATCHES, source_window='percentile', target_dtype='uint16', steps=3)
    base |= dict(target_window=[0.0, 3000.0], target_window_rule='0:3000', channels=[channels] * 2)
    return Translator(
        den, dict(model=dict(method=method, channels=channels), data={**base, **data})
    )


def both(tr, path, monkeypatch, **how):
    "The maps of a file by rows, and held in memory with the same noise."
    at_place = lambda *a, seeds, **k: draw(*a, seeds=PlaceNoise(seeds), **k)
    with monkeypatch.context() as m, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        m.setenv('XMODAL_MAX_WHOLE', '1')
        rows = tr.maps(path, **how)
        m.setenv('XMODAL_MAX_WHOLE', '100000000')
        m.setattr(translate, 'draw', at_place)
        whole = tr.maps(path, **how)
    return rows, whole


# --- the numbers are those of memory


CASES = {
    'uint16 with nodata': dict(x=values().astype('uint16'), nodata=0),
    'float32': dict(x=values().astype('float32'), nodata=-9999.0),
    'int16': dict(x=(values() - 1000).astype('int16')),
}


@pytest.mark.parametrize('case', CASES)
def test_rows_give_what_memory_gives(tmp_path, monkeypatch, case):
    x, more = CASES[case]['x'].copy(), {k: v for k, v in CASES[case].items() if k != 'x'}
    x[:, 20:40, :50] = more.get('nodata', 7)
    path = geotiff(tmp_path / 'a.tif', x, **more)
    rows, whole = both(model(target_dtype=str(x.dtype)), path, monkeypatch, samples=2)
    assert isinstance(rows['mean'], np.memmap) and not isinstance(whole['mean'], np.memmap)
    close = dict(atol=1 if x.dtype.kind in 'ui' else 0.05, equal_nan=True)
    for k in ('mean', 'std'):
        assert rows[k].dtype == whole[k].dtype
        np.testing.assert_allclose(rows[k], whole[k], **close)
    assert np.abs(np.diff(np.asarray(rows['mean'], float)[60:, 60:])).mean() > 1
    assert rows['place'].crs == whole['place'].crs and rows['place'].nodata == whole['place'].nodata


@pytest.mark.parametrize('layout', ['RGB', 'RGBA', 'planes'])
def test_colour_and_alpha(tmp_path, monkeypatch, layout):
    x = values(3, top=255).clip(0, 255).astype('uint8')
    more = dict(photometric='RGB', interleave='band' if layout == 'planes' else 'pixel')
    if layout == 'RGBA':
        alpha = np.full((1, *x.shape[1:]), 255, 'uint8')
        alpha[:, :30, 60:] = 0
        x, more = np.concatenate([x, alpha]), more | dict(alpha='yes')
    path = geotiff(tmp_path / 'a.tif', x, **more)
    about = dict(target_dtype='uint8', target_window=[0.0, 255.0], target_window_rule='dtype')
    rows, whole = both(
        model('regression', 3, source_window='dtype', steps=1, **about), path, monkeypatch
    )
    assert rows['mean'].shape == (100, 90, 3)
    np.testing.assert_allclose(rows['mean'], whole['mean'].astype(float), atol=1)


@pytest.mark.parametrize('rule', ['binary', 'labels:0:4'])
def test_labels_are_counted(tmp_path, monkeypatch, rule):
    path = geotiff(tmp_path / 'a.tif', values().astype('uint16'), nodata=0)
    window = [0.0, 4.0 if 'labels' in rule else 1.0]
    tr = model(target_window_rule=rule, target_window=window, target_dtype='uint8')
    rows, whole = both(tr, path, monkeypatch, samples=3)
    assert (np.asarray(rows['mean']) == whole['mean']).mean() > 0.999
    assert len(np.unique(rows['mean'])) > 1


def test_a_picture_smaller_than_a_tile(tmp_path, monkeypatch):
    for shape in ((20, 90), (90, 20), (9, 9)):
        path = geotiff(tmp_path / 'a.tif', values(shape=shape).astype('uint16'))
        rows, whole = both(model(), path, monkeypatch)
        assert rows['mean'].shape == shape
        np.testing.assert_allclose(rows['mean'], whole['mean'].astype(float), atol=1)


def test_further_sources(tmp_path, monkeypatch):
    class Sum(nn.Module):
        config = dict(channels=1)

        def forward(self, x, t, y, ctx=None, side=None):
            return y + side.mean(1, keepdim=True)

    x = [geotiff(tmp_path / f'{k}.tif', values().astype('uint16')) for k in 'ab']
    tr = model(
        'regression', source='a,b', source_window='0:3000', further=1, may_lack=True, steps=1
    )
    tr.den.net = Sum()
    rows, whole = both(tr, x[0], monkeypatch, more=[x[1]])
    np.testing.assert_allclose(rows['mean'], whole['mean'].astype(float), atol=1)
    rows, whole = both(tr, x[0], monkeypatch, more=[None])
    np.testing.assert_allclose(rows['mean'], whole['mean'].astype(float), atol=1)
    other = geotiff(tmp_path / 'c.tif', values(shape=(9, 9)).astype('uint16'))
    monkeypatch.setenv('XMODAL_MAX_WHOLE', '1')
    with pytest.raises(InputError, match='c.tif: another size'):
        tr.translate(x[0], more=[other])


@pytest.mark.parametrize(
    'method, how',
    [('ddbm_vp', {}), ('dbim', dict(order=3, eta=0.0)), ('abridge', {}), ('selfrdb', {})],
)
def test_every_kind_of_solver(method, how):
    class Held:
        y = torch.rand(1, 1, 70, 60) * 2 - 1
        sides = (70, 60)

        def lines(self, first, stop):
            return self.y[:, :, first:stop], None

    torch.manual_seed(0)
    tiled = Tiled(build(method, 1, net=dict(ch=8, mults=(1, 2), layers=1)).eval(), 32, batch=1)
    how = dict(how, steps=5)
    whole = draw(method, tiled, Held.y, seeds=PlaceNoise([5]), **how)
    for most in (1, 9):  # steps in memory at once
        sampling = SceneSampling(method, tiled, Held(), [5], **how)
        sampling.chained = lambda: most
        rows = torch.cat([v for _, v in sampling.answers()], 2)
        assert torch.equal(rows, whole), (method, most, (rows - whole).abs().max())


def test_strips_are_let_go():
    "Exceptions keep what they were raised in, unless told otherwise; a scene would fill memory."

    class Lines:
        sides = (300, 40)

        def lines(self, first, stop):
            return torch.zeros(1, 1, stop - first, 40), None

    tiled = Tiled(build('bbdm', 1, net=dict(ch=8, mults=(1,), layers=1)).eval(), 16, batch=64)
    most, alive = 0, lambda: sum(type(v) is Asked for v in gc.get_objects())
    gc.collect()
    gc.disable()
    try:
        for _ in SceneSampling('bbdm', tiled, Lines(), [1], steps=2).answers():
            most = max(most, alive())
    finally:
        gc.enable()
    assert most < 20


def test_noise_hangs_on_the_place():
    whole = PlaceNoise([3])(torch.empty(1, 2, 520, 300))
    part = PlaceNoise([3], first=200)(torch.empty(1, 2, 100, 300))
    assert torch.equal(part, whole[:, :, 200:300])
    assert not torch.equal(
        PlaceNoise([3], number=1)(torch.empty(1, 2, 100, 300)), whole[:, :, :100]
    )


# --- the window of a scene


@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'uint16', 'float32', 'int32'])
@pytest.mark.parametrize('rule', ['percentile', 'minmax', 'dtype', 'hu', '5:200'])
def test_windows_are_those_of_the_whole_picture(tmp_path, dtype, rule):
    x = values(top=200).clip(0, 255)
    x = (x if dtype == 'uint8' else x * 4 - 300).astype(dtype)
    if dtype == 'uint16':
        x = np.where(x > 60000, 0, x).astype(dtype)
        x[:, :30] = 65535  # padding
    path = geotiff(tmp_path / 'a.tif', x)
    tr = model(source_window=rule)
    loaded, kind = load_image(path, rule, [], True)
    if rule == 'dtype' and kind.kind not in 'ub':
        with pytest.raises(InputError, match='unsigned whole'):
            scenes.Scene(path, tr.data, 1)
        return
    want, got = window_of(loaded, rule, kind), scenes.Scene(path, tr.data, 1).window
    np.testing.assert_allclose([got.lo, got.hi], [want.lo, want.hi], rtol=1e-5, atol=1e-3)
    assert got.pad == want.pad


def test_a_scene_without_pixels_is_refused(tmp_path, by_rows):
    empty = geotiff(tmp_path / 'a.tif', np.zeros((1, 50, 50), 'uint16'), nodata=0)
    with pytest.raises(InputError, match='a.tif: no pixel is measured'):
        model().translate(empty)
    x = np.ones((1, 50, 50), 'float32')
    x[0, 3, 3] = np.inf
    with pytest.raises(InputError, match='b.tif: holds infinite values'):
        model().translate(geotiff(tmp_path / 'b.tif', x))


# --- files


def test_a_scene_as_a_file(tmp_path, by_rows):
    x = values().astype('uint16')
    x[:, :20, :20] = 0
    path = geotiff(tmp_path / 'a.tif', x, nodata=0, compress='lzw')
    out = tmp_path / 'out' / 'b.tif'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert not translate_paths(model(), path, out, samples=2, progress=False)
    with (
        rasterio.open(path) as a,
        rasterio.open(out) as b,
        rasterio.open(out.with_name('b_std.tif')) as s,
    ):
        assert (a.crs, a.transform, a.shape, a.dtypes) == (b.crs, b.transform, b.shape, b.dtypes)
        assert b.nodata == 0 and b.compression.name == 'lzw' and b.profile['tiled']
        assert (b.read(1)[:20, :20] == 0).all() and (b.read(1)[20:] != 0).all()
        assert np.isnan(s.read(1)[:20, :20]).all() and s.crs == a.crs and s.nodata is None
    notes = json.loads(out.with_name('b.tif.json').read_text())
    assert any('90 x 100 pixels are translated by rows of tiles' in v for v in notes['Changes'])
    before = out.stat().st_mtime_ns
    translate_paths(model(), path, out, samples=2, progress=False)
    assert out.stat().st_mtime_ns == before  # finished is finished
    assert sorted(p.name for p in out.parent.iterdir()) == ['b.tif', 'b.tif.json', 'b_std.tif']


def test_an_interrupted_scene_leaves_nothing(tmp_path, by_rows, monkeypatch):
    path, out = geotiff(tmp_path / 'a.tif', values().astype('uint16')), tmp_path / 'out' / 'b.tif'
    out.parent.mkdir()
    tr, ask, asked = model(), scenes.Scene.strip, []

    def broken(*a, **k):
        asked.append(1)
        if len(asked) > 4:
            raise KeyboardInterrupt
        return ask(*a, **k)

    monkeypatch.setattr(scenes.Scene, 'strip', broken)
    with pytest.raises(KeyboardInterrupt), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        translate_paths(tr, path, out, progress=False)
    assert not list(out.parent.iterdir())
    monkeypatch.undo()
    monkeypatch.setenv('XMODAL_MAX_WHOLE', '1')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        translate_paths(tr, path, out, progress=False)
    assert out.is_file()


def test_a_tiff_without_a_place(tmp_path, by_rows):
    path, out = tmp_path / 'a.tif', tmp_path / 'b.tif'
    tifffile.imwrite(path, values()[0].astype('uint16'))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        translate_paths(model(), path, out, progress=False)
        with rasterio.open(out) as f:
            assert f.crs is None and f.shape == (100, 90)
    assert tifffile.imread(out).dtype == np.uint16


def test_beyond_the_limit_of_memory(tmp_path, monkeypatch):
    monkeypatch.setenv('XMODAL_MAX_VALUES', '1000')
    path = geotiff(tmp_path / 'a.tif', values().astype('uint16'))
    with pytest.raises(InputError, match='XMODAL_MAX_VALUES'):
        model().translate(path)
    monkeypatch.setenv('XMODAL_MAX_WHOLE', '1000')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert model().translate(path).shape == (100, 90)  # fits on a disk


def test_no_room_on_the_disk(tmp_path, by_rows, monkeypatch):
    path = geotiff(tmp_path / 'a.tif', values().astype('uint16'))
    monkeypatch.setattr(scenes.shutil, 'disk_usage', lambda p: type('', (), dict(free=10)))
    with pytest.raises(InputError, match='a.tif: needs .* GB of temporary files.*TMPDIR'):
        model().translate(path)


# --- what stays in memory, and says so


def test_what_cannot_be_read_by_lines_is_said(tmp_path, by_rows):
    x = values(top=255)[0].clip(0, 255).astype('uint8')
    Image.fromarray(x).save(tmp_path / 'a.png')
    tifffile.imwrite(tmp_path / 'a.tif', x, photometric='miniswhite')
    tr = model('regression', steps=1)
    for name, reason in {'a.png': 'TIFF can', 'a.tif': 'kind of TIFF'}.items():
        words = str(said(lambda: tr.translate(tmp_path / name))[1])
        assert 'translated in one piece' in words and reason in words, words
    path = geotiff(tmp_path / 'b.tif', values().astype('uint16'))
    assert 'path (mix)' in str(said(lambda: tr.maps(path, mix=True))[1])
    bent = model('cdtsde')
    assert 'mixing field' in str(said(lambda: bent.translate(path))[1])


def test_small_pictures_and_models_of_squares_take_the_old_way(tmp_path, monkeypatch):
    path = geotiff(tmp_path / 'a.tif', values().astype('uint16'))
    assert not isinstance(model().translate(path), np.memmap)
    monkeypatch.setenv('XMODAL_MAX_WHOLE', '1')
    assert not isinstance(model(fit='shrink', tile=None).translate(path), np.memmap)
    assert not isinstance(model().translate(values()[0].astype('uint16')), np.memmap)


def test_fields_say_whether_they_look_around():
    assert FixedMix().flat and ChannelMix(1).flat and not SpatialMix(1).flat
