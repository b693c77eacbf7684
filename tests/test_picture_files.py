"""What pictures are kept in, in and out: the shared cases 01, 05, 06, 07, 08 and 22, small."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from xmodal.core import InputError
from xmodal.data import images
from xmodal.data.images import load_image
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
