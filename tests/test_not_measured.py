"""What was not measured, or is labelled by nobody, is in no number of `xmodal evaluate`: whatever
the answer's type, and however it is asked. Every refusal leads to a command that works.
"""

import json
import re
import shlex

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from xmodal.cli import main
from xmodal.folders import translate_paths
from small_model import IMAGE, VOLUME, echo
from test_wrong_in_silence_translate import said

rng = np.random.default_rng(0)
PLACE = np.diag([3.0, 3, 4, 1])


def evaluated(capsys, *words):
    "Exit code and everything printed of `xmodal evaluate`."
    capsys.readouterr()
    code = main(['evaluate', *map(str, words)])
    got = capsys.readouterr()
    return code, got.out + got.err


def value(text, metric):
    "The first number printed of a metric."
    return float(re.search(rf'\b{metric} +(inf|-?[\d.]+)', text)[1])


def answers(folder, kind, ending):
    "A source with holes, its truth, and the answer in whole numbers."
    for d in ('a', 'b', 'out'):
        (folder / d).mkdir()
    shape = (20, 24, 6) if ending == '.nii.gz' else (32, 32)
    v = rng.uniform(100, 200, shape).astype('f4')
    hollow = v.copy()
    hollow[:5] = np.nan
    name = f's{ending}'
    how = dict(source_window='0:200', target_window=[0.0, 200.0], target_dtype=kind)
    if ending == '.nii.gz':
        nib.save(nib.Nifti1Image(hollow, PLACE), folder / 'a' / name)
        nib.save(nib.Nifti1Image((v + 1).round().astype(kind), PLACE), folder / 'b' / name)
        tr = echo(VOLUME, **how)
    else:
        tifffile.imwrite(folder / 'a' / 's.tif', hollow)
        write = tifffile.imwrite if ending == '.tif' else save_png
        write(folder / 'b' / name, (v + 1).round().astype(kind))
        tr = echo(IMAGE, **how, size=32, target_window_rule='0:200')
    said(
        lambda: translate_paths(
            tr, folder / 'a' / ('s' + source_ending(ending)), answer_of(folder, name)
        )
    )
    return answer_of(folder, name)


def save_png(path, x):
    "A picture as PNG."
    Image.fromarray(x).save(path)


def source_ending(ending):
    "A PNG holds no NaN, so its source is a TIFF."
    return '.tif' if ending == '.png' else ending


def answer_of(folder, name):
    "Where the answer lies."
    return folder / 'out' / name


KINDS = [('uint16', '.tif'), ('uint8', '.png'), ('int16', '.nii.gz')]


@pytest.mark.parametrize('kind, ending', KINDS)
def test_holes_of_the_source_are_no_predictions(tmp_path, capsys, kind, ending):
    path = answers(tmp_path, kind, ending)
    words = [tmp_path / 'out', tmp_path / 'b', '--window', '0:200', '--per', 'volume']
    note = path.parent / f's{ending if ending != ".nii.gz" else ""}.json'
    about = json.loads(note.read_text())['NotMeasured']
    assert about['Number'] == 0 and about['Count'] > 0
    code, text = evaluated(capsys, *words)
    share = f'{about["Share"]:.1%} of the pixels (1 of 1 files)'
    assert code == 0 and share in text and value(text, 'psnr') > 40
    if ending == '.tif':
        assert tifffile.TiffFile(path).pages[0].tags[42113].value == '0'
    # without notes and tag, the source says it; without it, nobody does
    note.unlink()
    if ending == '.tif':
        tifffile.imwrite(path, tifffile.imread(path))
    assert value(evaluated(capsys, *words)[1], 'psnr') < 20
    code, text = evaluated(capsys, *words, '--source', tmp_path / 'a')
    assert code == 0 and share in text and value(text, 'psnr') > 40


def test_notes_that_a_changed_file_contradicts(tmp_path, capsys):
    path = answers(tmp_path, 'uint8', '.png')
    x = np.asarray(Image.open(path)).copy()
    x[20:] = 0
    save_png(path, x)
    words = [tmp_path / 'out', tmp_path / 'b', '--window', '0:200']
    code, text = evaluated(capsys, *words)
    assert code == 1 and 'changed since' in text and '--source' in text
    (path.parent / 's.png.json').unlink()
    assert evaluated(capsys, *words, '--source', tmp_path / 'a')[0] == 0


# --- labels


def save_labels(path, x, palette):
    "A label map as PNG, with a table of colours or without."
    im = Image.fromarray(x.astype('u1'))
    if palette:
        im.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [0] * 756)
    path.parent.mkdir(exist_ok=True)
    im.save(path)


def labelled(folder, palette=False, ignored=True):
    "Truths in four labels, whose first rows nobody has labelled, and answers right elsewhere."
    for k in 'xyz':
        t = np.kron(rng.integers(0, 4, (4, 4)), np.ones((6, 6), int))
        p = t.copy()
        p[:6] = 3 - p[:6]
        if ignored:
            t[:6] = 255
        save_labels(folder / 'b' / f'{k}.png', t, palette)
        save_labels(folder / 'out' / f'{k}.png', p, False)
    return [folder / 'out', folder / 'b']


CLASSES = ['--masks', '--classes', '1:a,2:b,3:c']


@pytest.mark.parametrize('palette', [False, True])
def test_ignored_labels_are_in_no_number(tmp_path, capsys, palette):
    folders = labelled(tmp_path, palette)
    ways = [
        [*CLASSES, '--ignore', '255'],
        ['--window', 'labels:0:3:255'],
        ['--window', 'labels:0:3', '--ignore', '255'],
    ]
    for words in ways:
        code, text = evaluated(capsys, *folders, *words)
        assert code == 0 and '25.0% of the pixels (3 of 3 files)' in text and '255' in text, text
        for name in ('a dice', 'b dice', 'c dice') if '--masks' in words else ():
            assert value(text, name) == 1
        for name in ('a hd95', 'b hd95', 'c hd95') if '--masks' in words else ():
            assert value(text, name) == 0
        if '--masks' not in words:
            assert 'mae 0' in text


def test_binary_masks_may_have_an_ignore_value(tmp_path, capsys):
    t = np.zeros((16, 16))
    t[4:12, 4:12] = 1
    save_labels(tmp_path / 'out' / 'x.png', 1 - t, False)
    p = t.copy()
    t[:4], p[:4] = 2, 1
    save_labels(tmp_path / 'b' / 'x.png', t, False)
    save_labels(tmp_path / 'out' / 'x.png', p, False)
    code, text = evaluated(capsys, tmp_path / 'out', tmp_path / 'b', '--masks', '--ignore', 2)
    assert code == 0 and value(text, 'dice') == 1 and '25.0%' in text


def test_an_answer_does_not_choose_where_it_is_measured(tmp_path, capsys):
    folders = labelled(tmp_path)
    x = np.asarray(Image.open(tmp_path / 'out' / 'x.png')).copy()
    x[20:] = 255
    save_labels(tmp_path / 'out' / 'x.png', x, False)
    for words in ([*CLASSES, '--ignore', 255], ['--window', 'labels:0:3:255']):
        code, text = evaluated(capsys, *folders, *words)
        assert code == 1 and '255' in text and '--source' in text
    words = ['--window', 'labels:0:3:255', '--ignore', 254]
    assert 'differ' in evaluated(capsys, *folders, *words)[1]
    words = ['--masks', '--classes', '1:a,2:b,3:c,255:d', '--ignore', 255]
    assert 'is one of the classes' in evaluated(capsys, *folders, *words)[1]


# what is typed, and the words of the message that are typed next
STEPS = [
    ('', r'--window labels:0:3'),
    ('--window labels:0:3', '--ignore 255'),
    ('--masks', r'--masks --classes [\w:,]+ --ignore \d+'),
    ('--masks --window labels:0:3', r'--masks --classes [\w:,]+'),
    ('--masks --window labels:0:3:255', r'--masks --classes [\w:,]+ --ignore \d+'),
    ('--classes 1:a,2:b,3:c', '--masks'),
]


@pytest.mark.parametrize('palette, ignored', [(True, False), (True, True), (False, True)])
def test_every_refusal_leads_on(tmp_path, capsys, palette, ignored):
    "Whatever is typed first, following the messages ends in numbers, in a few steps."
    folders = labelled(tmp_path, palette, ignored)
    for first, _ in STEPS:
        words, tried = first, []
        for _ in range(4):
            code, text = evaluated(capsys, *folders, *shlex.split(words))
            tried.append((words, text))
            if code == 0:
                break
            words = obeyed(words, text)
        assert code == 0, tried


def obeyed(words, text):
    "What somebody types who does what a message says."
    if 'leave --window away' in text:
        words = re.sub(r'--window \S+', '', words)
    if re.search('add it|add one of them', text) and '--masks' in text and '--masks' not in words:
        words += ' --masks'
    if 'measure them as masks' in text:
        words += ' --masks'
    ignoring = re.search(r'--ignore (\d+|VALUE)', text)
    found = re.search(r'--classes (\d[\w:,]+)', text)
    if found and not (ignoring and '255:' in found[1]):
        words = re.sub(r'--classes \S+', '', words) + f' --classes {found[1]}'
    if ignoring:
        words += f' --ignore {ignoring[1].replace("VALUE", "255")}'
    if 'labels:LO:HI' in text and '--masks' not in words:
        words += ' --window labels:0:3'
    return words
