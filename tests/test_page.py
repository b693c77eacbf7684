"""Pages of results: they need nothing else, every picture has words in its place, the numbers are those
of the files, and what does not belong together is refused by name.
"""

import base64
import io
import json
import re
import shutil
import warnings
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from small_model import IMAGE, VOLUME, echo, xmodal
from test_calibrate import model, named, people

from xmodal.core import InputError
from xmodal.folders import note_of, translate_paths
from xmodal.page import in_figures, load_shown, write_pages
from xmodal.training.model_folder import add_intervals, StoredIntervals

ALONE = {'img', 'meta', 'br'}


class Reader(HTMLParser):
    "A page as a browser without a network reads it: its elements, its words, and whether it is whole."

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ALONE:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != 'style':
            self.words.append(data)

    def all(self, tag):
        return [a for t, a in self.elements if t == tag]


def checked(path):
    "A page that has been looked at: alone, with words for pictures, headings in their order."
    text = path.read_text(encoding='utf-8')
    page = Reader(text)
    assert 'script' not in {t for t, _ in page.elements} and '@import' not in text
    for _, attributes in page.elements:
        for k in ('src', 'href'):
            assert not re.match(r'(https?|file|ftp):|//|/', attributes.get(k, '')), attributes
        assert not any(k.startswith('on') for k in attributes)
    assert all(len(a.get('alt', '')) > 5 for a in page.all('img')) and page.all('img')
    levels = [int(t[1]) for t, _ in page.elements if re.fullmatch('h[1-6]', t)]
    assert levels[0] == 1 and all(
        b - a <= 1 or (a, b) == (1, 3) for a, b in zip(levels, levels[1:])
    )
    assert all(a.get('scope') for a in page.all('th'))
    return page


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "Three people, translated by a calibrated model with random weights."
    root = tmp_path_factory.mktemp('pages')
    people(root / 'bids', 3)
    model(root / 'model', dict(train=named(8, 9), val=[], test=[]))
    known = dict(factors={'0.9': 2.0}, floor=0.1, kappa=0.5, people=9, samples=2, steps=1)
    promise = dict(held={'0.9': 0.93}, guarantee='On average over people.')
    add_intervals(root / 'model', StoredIntervals(**known, **promise))
    words = root / 'bids', root / 'out', '--bids', '--interval', 0.9, '--risk', '--page'
    done = xmodal('translate', root / 'model', *words)
    assert done.returncode == 0, done.stderr
    assert 'index.html and 3 more' in done.stdout
    return root


@pytest.fixture
def answers(study, tmp_path):
    "A copy of the results, to be broken."
    shutil.copytree(study / 'out', tmp_path / 'out')
    return tmp_path / 'out'


def result(root, i=1):
    return root / f'sub-{i:03d}/anat/sub-{i:03d}_desc-synth_T2w.nii.gz'


def page_beside(path):
    return path.with_name(path.name.replace('.nii.gz', '.html'))


def test_a_page_of_a_scan(study):
    path = result(study / 'out')
    page, note = checked(page_beside(path)), note_of(path)
    text = ' '.join(page.words)
    for word in (note['OutputDigest'], note['SourceDigest'], 'On average over people.', '93.0%'):
        assert word in text
    assert 'learned from' in text and '2 people' in text and 'axial' in text
    assert '--interval 0.9 --risk' in text and '--samples 2' in text
    ends = [nib.load(str(path).replace('synth_', f'synth{k}_')) for k in ('Upper', 'Lower')]
    width = np.subtract(*[v.get_fdata() for v in ends])
    shown = load_shown(path, study / 'bids')
    assert 0 < shown.body.mean() < 1
    assert in_figures(width[shown.body].mean()) in text
    assert in_figures(np.median(width[shown.body])) in text
    assert len(page.all('img')) == 4 * 5 + 1  # source, answer and three maps, four cuts; histograms


def test_a_page_of_a_cohort(study):
    page = checked(study / 'out/index.html')
    links = [a['href'] for a in page.all('a')]
    assert sorted(links) == [f'sub-{i:03d}/anat/sub-{i:03d}_desc-synth_T2w.html' for i in (1, 2, 3)]
    assert all((study / 'out' / v).is_file() for v in links)
    back = checked(study / 'out' / links[0]).all('a')
    assert back[0]['href'] == '../../index.html'


def test_the_pixels_are_those_of_the_file(study):
    "The first picture is the source, right on the left, front on top."
    path = result(study / 'out')
    scan = nib.load(study / 'bids/sub-001/anat/sub-001_T1w.nii.gz')
    shown = load_shown(path, study / 'bids')
    page = checked(page_beside(path))
    data = page.all('img')[0]['src'].removeprefix('data:image/png;base64,')
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(float)
    middle = round(np.nonzero(shown.body)[2].mean())
    plane = scan.get_fdata()[::-1, ::-1, middle].T
    small = np.asarray(
        Image.fromarray(drawn.astype(np.uint8)).resize((16, 16), Image.Resampling.BOX)
    )
    assert np.corrcoef(small.ravel(), plane.ravel())[0, 1] > 0.97
    mirrored = np.corrcoef(small.ravel(), plane[:, ::-1].ravel())[0, 1]
    assert mirrored < np.corrcoef(small.ravel(), plane.ravel())[0, 1]


def test_with_the_truth(study, tmp_path):
    words = '--source', study / 'bids', '--truth', study / 'bids', '--to', tmp_path / 'pages'
    done = xmodal('page', study / 'out', *words)
    assert done.returncode == 0, done.stderr
    page = checked(tmp_path / 'pages/sub-002/anat/sub-002_desc-synth_T2w.html')
    text, shown = ' '.join(page.words), load_shown(result(study / 'out', 2))
    truth = nib.load(study / 'bids/sub-002/anat/sub-002_T2w.nii.gz').get_fdata()
    with_it = load_shown(
        result(study / 'out', 2), None, study / 'bids/sub-002/anat/sub-002_T2w.nii.gz'
    )
    off = np.abs(shown.views['translation'].values - truth)[with_it.body]
    held = (shown.maps['lower'] <= truth) & (truth <= shown.maps['upper'])
    assert in_figures(off.mean()) in text and 'measured absolute error' in text
    assert f'{held[with_it.body].mean():.1%}' in text
    assert (tmp_path / 'pages/index.html').is_file()


def test_what_is_missing_or_changed_is_a_concern(answers, study):
    path = result(answers)
    risk = path.with_name(path.name.replace('synth_', 'synthRisk_'))
    risk.unlink()
    scan = nib.load(path)
    nib.save(nib.Nifti1Image(scan.get_fdata().astype(np.float32) + 1, scan.affine), path)
    shown = load_shown(path, study / 'bids')
    assert len(shown.lacking) == 2 and 'risk' not in shown.views
    write_pages(answers, study / 'bids')
    text = (answers / 'index.html').read_text()
    assert 'was changed or damaged' in text and risk.name in text
    links = re.findall(r'href="([^"]*)"', text)
    assert links[0].startswith('sub-001')  # what has concerns of its own comes first


def test_another_source_is_refused_and_stops_no_other(answers, study, tmp_path):
    shutil.copytree(study / 'bids', tmp_path / 'bids')
    shutil.copy(
        tmp_path / 'bids/sub-003/anat/sub-003_T1w.nii.gz',
        tmp_path / 'bids/sub-002/anat/sub-002_T1w.nii.gz',
    )
    done = xmodal('page', answers, '--source', tmp_path / 'bids', '--to', tmp_path / 'pages')
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert 'sub-002' in done.stderr and 'not the file that was translated' in done.stderr
    assert sorted(p.name[:7] for p in (tmp_path / 'pages').rglob('sub-*.html')) == [
        'sub-001',
        'sub-003',
    ]
    assert 'sub-002' in (tmp_path / 'pages/index.html').read_text()


def test_damaged_notes_stop_no_other(answers):
    note = result(answers, 3).with_name('sub-003_desc-synth_T2w.json')
    note.write_text(json.dumps(json.loads(note.read_text()) | dict(Output=7, MapDigests=[3])))
    pages, failed = write_pages(answers)
    assert [p.name[:7] for p, _ in failed] == ['sub-003'] and len(pages) == 3
    assert 'notes' in failed[0][1]


def test_files_of_others_stay(answers):
    page = page_beside(result(answers))
    page.write_text('<html>mine</html>')
    pages, failed = write_pages(answers)
    assert page.read_text() == '<html>mine</html>' and page not in pages
    assert 'choose another folder' in failed[0][1]


def test_nothing_to_show_is_one_line(study, tmp_path):
    for place in (study / 'bids', tmp_path / 'none'):
        done = xmodal('page', place)
        assert done.returncode == 1 and done.stderr.count('\n') == 1 and str(place) in done.stderr
    other = nib.load(study / 'bids/sub-001/anat/sub-001_T2w.nii.gz')
    nib.save(nib.Nifti1Image(other.get_fdata()[:9], other.affine), tmp_path / 'small.nii.gz')
    with pytest.raises(InputError, match='another grid'):
        load_shown(result(study / 'out'), None, tmp_path / 'small.nii.gz')


def translated(tr, source, output, **how):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert not translate_paths(tr, source, output, progress=False, **how)


def test_names_and_notes_cannot_break_a_page(tmp_path):
    scan = np.zeros((32, 32, 4), np.float32)
    scan[8:24, 8:24] = 500 + np.arange(16)[:, None, None]
    source = tmp_path / 'a<b>&"x.nii.gz'
    nib.save(nib.Nifti1Image(scan, np.diag([3.0, 3, 3, 1])), source)
    (tmp_path / 'out').mkdir()
    output = tmp_path / 'out' / source.name
    translated(echo(VOLUME), source, output)
    note = output.with_name('a<b>&"x.json')
    evil = '<script>alert(1)</script>'
    note.write_text(json.dumps(json.loads(note.read_text()) | dict(Doubts=[evil, '"><img src=x>'])))
    (path,), _ = write_pages(output, source)
    page = checked(path)
    assert evil in ' '.join(page.words) and source.name in ' '.join(page.words)
    assert 'How far values may be off is not known here' in ' '.join(page.words)


@pytest.mark.parametrize('channels', [1, 3])
def test_pictures(tmp_path, channels):
    rng = np.random.default_rng(0)
    grey = (255 * rng.random((40, 24, 3))).astype(np.uint8)
    Image.fromarray(grey if channels == 3 else grey[..., 0]).save(tmp_path / 'a.png')
    (tmp_path / 'out').mkdir()
    tr = echo({**IMAGE, 'channels': [channels, channels]}, channels)
    translated(tr, tmp_path / 'a.png', tmp_path / 'out/a.png')
    (path,), failed = write_pages(tmp_path / 'out/a.png', tmp_path / 'a.png', tmp_path / 'a.png')
    assert not failed and path.name == 'a.png.html'
    page = checked(path)
    assert 'axial' not in ' '.join(page.words)
    pictures = [a for a in page.all('img') if a['src'].startswith('data:image/png')]
    shown = [Image.open(io.BytesIO(base64.b64decode(a['src'].split(',')[1]))) for a in pictures]
    assert len(shown) == 4 and shown[0].mode == ('RGB' if channels == 3 else 'L')
    assert all(v.size == (192, 320) for v in shown)
