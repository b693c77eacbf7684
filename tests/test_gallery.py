"The gallery shows what its notebooks show, and nothing of data whose terms allow no pictures."

import json

import make_gallery as g
import pytest

HIDDEN = ('brats_crops', 'glioma', 'head_mr_ct', 'sar_optical')


def test_every_picture_is_that_of_its_notebook():
    assert list(g.pictures_of()) and not g.main(check=True)


def test_a_picture_that_changed_is_noticed(tmp_path):
    image = 'iVBORw0KGgo='
    cell = dict(id='abc', source='', outputs=[dict(data={'image/png': image})])
    page = dict(source='![x](../images/gallery/a.abc.0.png)')
    for name, cells in (('nbs/experiments/a', [cell]), ('nbs/guide/gallery', [page])):
        path = tmp_path / f'{name}.ipynb'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(cells=cells)))
    assert len(g.main(tmp_path, check=True)) == 1  # not written yet
    assert g.main(tmp_path) == [] and g.main(tmp_path, check=True) == []
    written = tmp_path / 'nbs/images/gallery/a.abc.0.png'
    written.write_bytes(b'other')
    (written.parent / 'b.abc.0.png').write_bytes(b'')
    assert len(g.main(tmp_path, check=True)) == 2
    cell['outputs'] = []
    (tmp_path / 'nbs/experiments/a.ipynb').write_text(json.dumps(dict(cells=[cell])))
    assert 'no notebook holds' in g.main(tmp_path)[0]


@pytest.mark.parametrize('word', HIDDEN)
def test_nothing_is_shown_that_must_not_be(word):
    page = (g.ROOT / 'nbs/guide/gallery.ipynb').read_text(encoding='utf-8')
    assert f'({word}' not in page and f'data/{word}' not in page
