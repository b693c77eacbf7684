"Folders given wrongly to xmodal evaluate: the right number, a note that names the fault, or one line of refusal."

import json
import re
import shutil
import warnings

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

SIZE = 64


def here(capsys, *words):
    "The command in this process: exit code, its numbers, its notes, and its lines of refusal."
    from xmodal.cli import main

    with warnings.catch_warnings(record=True) as said:  # pytest would keep them to itself
        warnings.simplefilter('default')
        code = main([*map(str, words)])
    done = capsys.readouterr()
    assert 'Traceback' not in done.err
    numbers = {
        m[1]: float(m[2]) for m in re.finditer(r'^([a-z_ ]+) ([-\d.e+]+|inf|nan) ', done.out, re.M)
    }
    notes = re.findall(r'^note: ([^\n]*)', done.out, re.M) + [str(w.message) for w in said]
    return code, numbers, notes, re.findall(r'xmodal: (?!note)[^\n]*', done.err)


def scene(seed, *shape):
    v = gaussian_filter(np.random.default_rng(seed).normal(size=shape or (SIZE, SIZE)), 3)
    return (v - v.min()) / np.ptp(v)


def bytes_of(v):
    return (255 * np.clip(v, 0, 1)).round().astype(np.uint8)


def save(path, v):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.png':
        return Image.fromarray(v).save(path)
    if path.suffix == '.tif':
        return tifffile.imwrite(path, v)
    return nib.save(nib.Nifti1Image(v, np.diag([2.0, 2.0, 2.0, 1.0])), path)


def grey(root, f=lambda p, i: p, n=6, ending='.png', form=bytes_of, name='sub-{:02d}_1'):
    "Folders p and t of good translations (a little noise); `f` harms the translation of number i."
    for i in range(n):
        t = scene(i)
        p = gaussian_filter(t, 0.5) + 0.02 * np.random.default_rng(90 + i).normal(size=t.shape)
        save(root / 't' / (name.format(i) + ending), form(t))
        save(root / 'p' / (name.format(i) + ending), form(np.ascontiguousarray(f(p, i))))


def brains(root, f=lambda v, a, i: (v, a), n=4, ending='.nii.gz', kind=np.float32):
    "The same of small volumes."
    for i in range(n):
        t = 1000 * np.clip(scene(i, 40, 44, 24) - 0.3, 0, None)
        p, a = f(
            t + 20 * np.random.default_rng(90 + i).normal(size=t.shape),
            np.diag([2.0, 2.0, 2.0, 1.0]),
            i,
        )
        save(root / 't' / f'sub-{i:02d}_T2w.nii.gz', t.astype(np.float32))
        (root / 'p').mkdir(exist_ok=True)
        nib.save(
            nib.Nifti1Image(np.ascontiguousarray(p).astype(kind), a),
            root / 'p' / f'sub-{i:02d}_T1w{ending}',
        )


def shuffled(folder, step=1):
    "Every file takes the name of the next one."
    files = sorted(folder.iterdir())
    data = [q.read_bytes() for q in files]
    for q, d in zip(files, data[step:] + data[:step]):
        q.write_bytes(d)


# ---------------------------------------------------------------- right data: silence
@pytest.mark.parametrize(
    'make',
    [
        grey,
        brains,
        lambda r: grey(r, lambda p, i: gaussian_filter(p, 3)),
        lambda r: grey(r, lambda p, i: p + 0.2 * np.random.default_rng(i).normal(size=p.shape)),
        lambda r: grey(r, ending='.tif'),
        lambda r: brains(r, ending='.nii'),
    ],
    ids=['images', 'volumes', 'blurred', 'noisy', 'tif', 'nii against nii.gz'],
)
def test_right_data_have_no_note(make, tmp_path, capsys):
    make(tmp_path)
    code, numbers, notes, lines = here(capsys, 'evaluate', tmp_path / 'p', tmp_path / 't')
    assert code == 0 and not lines and 'psnr' in numbers
    assert not [n for n in notes if 'MS-SSIM' not in n], notes


# ---------------------------------------------------------------- what is likely wrong: a note with
# the number
GREY = dict(
    mirrored=(lambda p, i: p[:, ::-1], 'mirrored left-right (6 of 6'),
    flipped=(lambda p, i: p[::-1], 'flipped up-down (6 of 6'),
    turned=(lambda p, i: np.rot90(p), 'turned by 270 degrees (6 of 6'),
    transposed=(lambda p, i: p.T, 'transposed (rows and columns exchanged) (6 of 6'),
    one_mirrored=(
        lambda p, i: p[:, ::-1] if i == 2 else p,
        'sub-02_1: the translation fits its truth better mirrored',
    ),
    shifted=(lambda p, i: np.roll(p, 5, 1), '+0 rows and -5 columns (6 of 6'),
    half=(lambda p, i: p / 2, '(about 1/2) times the truth (6 of 6'),
    tenth=(lambda p, i: p / 10, '(about 1/10) times the truth (6 of 6'),
    one_half=(lambda p, i: p / 3 if i == 1 else p, 'sub-01_1: the translation is 0.3'),
    offset=(lambda p, i: p * 0.5 + 0.4, None),
    inverted=(lambda p, i: 1 - p, 'other grey values (6 of 6'),
)


@pytest.mark.parametrize('name', GREY)
def test_a_fault_of_grey_images_is_named(name, tmp_path, capsys):
    harm, words = GREY[name]
    grey(tmp_path, harm)
    code, _, notes, lines = here(
        capsys, 'evaluate', tmp_path / 'p', tmp_path / 't', '--out', tmp_path / 'run'
    )
    assert code == 0 and not lines
    assert notes and any((words or 'times the truth') in n for n in notes), notes
    kept = json.loads((tmp_path / 'run' / 'metrics.json').read_text())['notes']
    assert any((words or 'times the truth') in n for n in kept)


VOLUMES = dict(
    mirrored=(lambda v, a, i: (v[::-1], a), 'mirrored left-right (4 of 4'),
    reversed_slices=(lambda v, a, i: (v[..., ::-1], a), 'reversed slice order (4 of 4'),
    bytes_of_it=(lambda v, a, i: (v * 2, a), '(about 2) times the truth (4 of 4'),
    offset=(lambda v, a, i: (v - 1024, a), 'the translations lie -1024 from the truth (4 of 4'),
)


@pytest.mark.parametrize('name', VOLUMES)
def test_a_fault_of_volumes_is_named(name, tmp_path, capsys):
    harm, words = VOLUMES[name]
    brains(tmp_path, harm)
    code, _, notes, lines = here(capsys, 'evaluate', tmp_path / 'p', tmp_path / 't')
    assert code == 0 and not lines and any(words in n for n in notes), notes


def test_255_times_is_refused_and_the_remedy_in_the_message_works(tmp_path, capsys):
    brains(tmp_path, lambda v, a, i: (v / 255, a))
    code, _, _, lines = here(capsys, 'evaluate', tmp_path / 'p', tmp_path / 't')
    assert code == 1 and len(lines) == 1 and 'another unit' in lines[0]
    remedy = re.findall(r'--(?:pred-)?window [-\d.e+:]+', lines[0])
    words = [w for part in remedy for w in part.split()]
    code, numbers, _, lines = here(capsys, 'evaluate', tmp_path / 'p', tmp_path / 't', *words)
    assert code == 0 and not lines and numbers['psnr'] > 25


def test_exchanged_subjects_are_named(tmp_path, capsys):
    grey(tmp_path, name='sub-{:02d}_1')
    shuffled(tmp_path / 'p')
    code, _, notes, _ = here(capsys, 'evaluate', tmp_path / 'p', tmp_path / 't')
    assert code == 0 and any(
        '6 of 6 translations fit the truth of another subject' in n for n in notes
    ), notes
    shutil.rmtree(tmp_path / 'p')
    grey(tmp_path, name='sub-{:02d}_1')
    a, b = (tmp_path / 'p' / f'sub-0{k}_1.png' for k in (1, 4))
    one, two = a.read_bytes(), b.read_bytes()
    a.write_bytes(two), b.write_bytes(one)
    code, _, notes, _ = here(capsys, 'evaluate', tmp_path / 'p', tmp_path / 't')
    assert any('sub-01_1 fits sub-04_1' in n and '2 of 6' in n for n in notes), notes


def test_copies_are_named(tmp_path, capsys):
    grey(tmp_path)
    code, _, _, lines = here(capsys, 'evaluate', tmp_path / 't', tmp_path / 't')
    assert code == 1 and 'given as translations and as truth' in lines[0]
    shutil.copytree(tmp_path / 't', tmp_path / 'copy')
    _, _, notes, _ = here(capsys, 'evaluate', tmp_path / 'copy', tmp_path / 't')
    assert any('6 of 6 translations equal their truth' in n for n in notes), notes
    shutil.copytree(tmp_path / 'p', tmp_path / 's')
    _, _, notes, _ = here(
        capsys, 'evaluate', tmp_path / 'p', tmp_path / 't', '--source', tmp_path / 's'
    )
    assert any('equal their source' in n for n in notes), notes
    _, _, notes, _ = here(
        capsys, 'evaluate', tmp_path / 'p', tmp_path / 't', '--source', tmp_path / 'copy'
    )
    assert any('sources was given as truth' in n for n in notes), notes
    for d in 'pt':
        shutil.copy(tmp_path / d / 'sub-01_1.png', tmp_path / d / 'sub-77_1.png')
    _, _, notes, _ = here(capsys, 'evaluate', tmp_path / 'p', tmp_path / 't')
    assert any('sub-01_1 and sub-77_1 have the same truth' in n for n in notes), notes


def test_twelve_bits_in_sixteen_are_noted_once_and_the_remedy_works(tmp_path, capsys):
    deep = lambda v: (4000 * np.clip(v, 0, 1)).astype(np.uint16)
    grey(tmp_path, ending='.tif', form=deep)
    _, numbers, notes, _ = here(capsys, 'evaluate', tmp_path / 'p', tmp_path / 't')
    told = [n for n in notes if '--window 0:4095' in n]
    assert len(told) == 1 and '24 dB' in told[0], notes
    _, right, notes, _ = here(
        capsys, 'evaluate', tmp_path / 'p', tmp_path / 't', '--window', '0:4095'
    )
    assert numbers['psnr'] - right['psnr'] == pytest.approx(24.1, abs=0.1) and not any(
        'uint16' in n for n in notes
    )


def test_one_quiet_tile_is_measured(tmp_path, capsys):
    wide = lambda v: (200 + 3000 * np.clip(v, 0, 1)).astype(np.uint16)
    grey(tmp_path, ending='.tif', form=wide, n=4)
    flat = 200 + 40 * scene(0)
    save(tmp_path / 't' / 'sub-00_1.tif', flat.astype(np.uint16))
    save(
        tmp_path / 'p' / 'sub-00_1.tif',
        (flat + 60 * np.random.default_rng(0).normal(size=flat.shape)).clip(0).astype(np.uint16),
    )
    code, numbers, notes, lines = here(capsys, 'evaluate', tmp_path / 'p', tmp_path / 't')
    assert code == 0 and any('sub-00_1.tif: values span' in n for n in notes), (lines, notes)
    code, _, notes, _ = here(
        capsys,
        'evaluate',
        tmp_path / 'p',
        tmp_path / 't',
        '--window',
        '0:10000',
        '--pred-window',
        '0:10000',
    )
    assert code == 0 and not any('values span' in n for n in notes)


# ---------------------------------------------------------------- Hounsfield units
def test_an_error_of_fifty_hu_is_fifty(tmp_path, capsys):
    for i in range(3):
        t = -1000 + 2000 * scene(i, 40, 44, 24)
        for d, v in dict(
            t=t, p=t + 50 * np.sign(scene(50 + i, *t.shape) - 0.5), m=np.ones_like(t)
        ).items():
            save(tmp_path / d / f'sub-{i}_CT.nii.gz', v.astype(np.float32))
    words = [
        'evaluate',
        tmp_path / 'p',
        tmp_path / 't',
        '--protocol',
        'synthrad',
        '--mask',
        tmp_path / 'm',
    ]
    for hu in ('-1000:1000', '-1024:3000', '-1100:1100'):
        for more in ([], ['--window', hu]):
            code, numbers, _, lines = here(capsys, *words, '--hu', hu, *more)
            assert code == 0 and numbers['mae_hu'] == pytest.approx(50, abs=0.01), lines
    for more in (['--window', '0:2000'], ['--window', 'percentile'], ['--pred-window', '0:1']):
        code, _, _, lines = here(capsys, *words, '--hu', '-1000:1000', *more)
        assert code == 1 and len(lines) == 1 and 'leave' in lines[0]
    code, _, _, lines = here(capsys, *words, '--hu', '1000:-1000')
    assert code == 1 and 'lower one first' in lines[0]


@pytest.mark.parametrize('scale', [['--window', 'hu'], ['--hu', '-1000:1000']])
def test_what_is_in_hu_is_said_in_hu_as_a_whole_and_inside_regions(scale, tmp_path, capsys):
    for i in range(3):
        t = -1000 + 2000 * scene(i, 40, 44, 24)
        bone = np.zeros(t.shape, np.uint8)
        bone[10:30, 12:32] = 2
        for d, v in dict(t=t, p=t + 20 + 60 * (bone > 0), m=np.ones_like(t), r=bone).items():
            save(tmp_path / d / f'sub-{i}_CT.nii.gz', v.astype(np.float32))
    words = ['evaluate', tmp_path / 'p', tmp_path / 't', '--mask', tmp_path / 'm', *scale]
    words += ['--roi', tmp_path / 'r', '--classes', '2:bone', '--out', tmp_path / 'run']
    words += ['--protocol', 'synthrad'] * (scale[0] == '--hu')
    code, numbers, _, lines = here(capsys, *words)
    assert code == 0, lines
    inside = (20 * 20) / (40 * 44)
    assert numbers['mae_hu'] == pytest.approx(20 + 60 * inside, abs=0.2)
    assert numbers['bone mae_hu'] == pytest.approx(80, abs=0.1)
    assert numbers['bone bias_hu'] == pytest.approx(80, abs=0.1)
    kept = json.loads((tmp_path / 'run' / 'metrics.json').read_text())['scores']
    assert kept['p in bone']['mae_hu']['mean'] == pytest.approx(80, abs=0.1)
    plain = [w for w in words if w not in scale and w not in ('--protocol', 'synthrad')]
    code, numbers, _, lines = here(capsys, *plain, '--window', '-1000:1000')
    assert code == 0 and not [k for k in numbers if 'hu' in k], 'nobody has said that it is HU'


def test_a_protocol_that_lacks_its_mask_or_its_scale_names_the_word(tmp_path, capsys):
    brains(tmp_path, n=2)
    words = ['evaluate', tmp_path / 'p', tmp_path / 't', '--protocol', 'synthrad']
    code, _, _, lines = here(capsys, *words, '--hu', '-1000:1000')
    assert code == 1 and len(lines) == 1 and '--mask FOLDER' in lines[0], lines
    code, _, _, lines = here(capsys, *words, '--mask', tmp_path / 't')
    assert code == 1 and len(lines) == 1 and '--hu -1000:1000' in lines[0], lines


def test_bytes_are_no_hounsfield_units(tmp_path, capsys):
    grey(tmp_path)
    grey(tmp_path / 'm', lambda p, i: 1 + 0 * p)
    code, _, _, lines = here(
        capsys,
        'evaluate',
        tmp_path / 'p',
        tmp_path / 't',
        '--protocol',
        'synthrad',
        '--hu',
        '-1000:1000',
        '--mask',
        tmp_path / 'm' / 'p',
    )
    assert code == 1 and len(lines) == 1 and 'no Hounsfield units' in lines[0]


# ---------------------------------------------------------------- subjects
@pytest.mark.parametrize(
    'names, subject',
    [
        ('sub-01_ses-2_T1w', 'sub-01'),
        ('IXI012-Guys-0700-T1', 'IXI012'),
        ('BraTS20_Training_001_t1', 'BraTS20_Training_001'),
        ('BraTS2021_00003_t2', 'BraTS2021_00003'),
        ('BraTS-GLI-00012-000', 'BraTS-GLI-00012'),
        ('Brats18_CBICA_AAM_1_t1', 'Brats18_CBICA_AAM_1'),
        ('case41_013', 'case41'),
        ('patient_12_3', 'patient_12'),
        ('TCGA-CS-4941_19960909_3', 'TCGA-CS-4941'),
        ('1_01_P_ct', '1_01_P'),
        ('A012_0001', 'A012_0001'),
        ('showcase_3', 'showcase_3'),
        ('patch_7', 'patch_7'),
    ],
)
def test_usual_names_of_people_are_understood(names, subject):
    from xmodal.evaluation.cohort import subject_in

    assert subject_in(names) == subject


@pytest.mark.parametrize(
    'name, words',
    [
        ('A012_{:04d}', '6 subjects, but their names look like 1 (A012)'),
        ('{}x', ''),
        ('img_{:03d}', ''),
        ('P7s{}', 'look like 1 (P7s)'),
        ('patient_{}', ''),
        ('tile{}', ''),
    ],
)
def test_three_files_of_one_person_are_not_three_people_without_a_word(
    name, words, tmp_path, capsys
):
    grey(tmp_path, name=name)
    _, _, notes, _ = here(
        capsys, 'evaluate', tmp_path / 'p', tmp_path / 't', '--out', tmp_path / 'run'
    )
    told = [n for n in notes if 'files count as' in n]
    label = json.loads((tmp_path / 'run' / 'metrics.json').read_text())['protocol']
    assert bool(told) == bool(words) == ('NAMES LOOK LIKE' in label), (notes, label)
    if not words:
        return
    assert words in told[0]
    group = re.search(r"give group '(.*?)' \(--group", told[0])[1]  # as it stands, to be copied
    _, _, notes, _ = here(
        capsys,
        'evaluate',
        tmp_path / 'p',
        tmp_path / 't',
        '--group',
        group,
        '--out',
        tmp_path / 'again',
    )
    assert (
        json.loads((tmp_path / 'again' / 'metrics.json').read_text())['scores']['p']['psnr'][
            'n_subjects'
        ]
        == 1
    )
    assert not any('files count as' in n for n in notes)


# ---------------------------------------------------------------- masks
def masks(root, pred, truth, empty=True):
    "Masks of five scenes, one of them empty on both sides, each written by its function."
    for i in range(5):
        m = scene(i) > 0.65
        m = m & (not (empty and i == 4))
        save(root / 't' / f'sub-{i}_1.png', truth(m))
        save(root / 'p' / f'sub-{i}_1.png', pred(m, i))


one = lambda m, i=0: m.astype(np.uint8)
full = lambda m, i=0: 255 * m.astype(np.uint8)
logical = lambda m, i=0: m
likely = lambda m, i=0: np.where(m, 240, 1 if not m.any() else 8).astype(np.uint8)


@pytest.mark.parametrize('truth', [one, full, logical], ids=['01', '0255', 'bool'])
@pytest.mark.parametrize(
    'pred',
    [one, full, logical, likely, lambda m, i: one(m) if i % 2 else full(m)],
    ids=['01', '0255', 'bool', 'grey', 'both'],
)
def test_perfect_masks_are_perfect_however_they_are_saved(pred, truth, tmp_path, capsys):
    masks(tmp_path, pred, truth)
    code, numbers, _, lines = here(capsys, 'evaluate', tmp_path / 'p', tmp_path / 't', '--masks')
    assert code == 0 and numbers['dice'] == 1 and numbers['iou'] == 1, lines


def test_faults_of_masks_are_named(tmp_path, capsys):
    masks(tmp_path / 'a', lambda m, i: full(~m), full, empty=False)
    _, _, notes, _ = here(capsys, 'evaluate', tmp_path / 'a' / 'p', tmp_path / 'a' / 't', '--masks')
    assert any('inverted' in n for n in notes), notes
    masks(tmp_path / 'b', lambda m, i: bytes_of(scene(i)), full)
    _, _, notes, _ = here(capsys, 'evaluate', tmp_path / 'b' / 'p', tmp_path / 'b' / 't', '--masks')
    assert any('grey images' in n and 'cut at 127.5' in n for n in notes), notes
    masks(tmp_path / 'c', full, lambda m: full(m & False))
    _, _, notes, _ = here(capsys, 'evaluate', tmp_path / 'c' / 'p', tmp_path / 'c' / 't', '--masks')
    assert any('all truths are empty' in n for n in notes), notes
    masks(tmp_path / 'd', lambda m, i: np.roll(full(m), 4, 1), full, empty=False)
    _, _, notes, _ = here(capsys, 'evaluate', tmp_path / 'd' / 'p', tmp_path / 'd' / 't', '--masks')
    assert any('-4 columns' in n for n in notes), notes
    masks(tmp_path / 'e', full, full, empty=False)
    shuffled(tmp_path / 'e' / 'p')
    _, _, notes, _ = here(capsys, 'evaluate', tmp_path / 'e' / 'p', tmp_path / 'e' / 't', '--masks')
    assert any('another subject' in n for n in notes), notes
    _, _, notes, _ = here(capsys, 'evaluate', tmp_path / 'e' / 'p', tmp_path / 'e' / 't')
    assert any('binary masks' in n and '--masks' in n for n in notes), notes


def test_label_maps(tmp_path, capsys):
    "Whole numbers are measured by class; a value that no class names is named with its file."
    cut = lambda i: np.digitize(scene(i), [0.4, 0.6, 0.8]).astype(np.uint8)
    for i in range(4):
        save(tmp_path / 't' / f'sub-{i}.png', cut(i))
        save(tmp_path / 'p' / f'sub-{i}.png', cut(i))
        save(tmp_path / 'rgb' / f'sub-{i}.png', np.stack([cut(i), cut(i), 0 * cut(i)], -1))
        save(tmp_path / 'five' / f'sub-{i}.png', cut(i) + 5 * np.uint8(i == 2) * (cut(i) == 3))
    words = ['--masks', '--classes', '1:a,2:b,3:c']
    code, numbers, _, _ = here(capsys, 'evaluate', tmp_path / 'p', tmp_path / 't', *words)
    assert code == 0 and [numbers[f'{k} dice'] for k in 'abc'] == [1, 1, 1]
    for folder, more, said in (
        ('five', words, 'sub-2.png: holds the value 8'),
        ('rgb', words, 'channels differ'),
        ('p', ['--masks', '--classes', '1:a,2:b'], 'holds the value 3'),
        ('p', ['--masks'], '--classes 1:a,2:b,3:c'),
        ('p', ['--classes', '1:a'], '--masks'),
        ('p', ['--masks', '--classes', '1:a,1:b'], 'occurs twice'),
        ('p', [*words, '--window', '0:3'], 'leave --window away'),
    ):
        code, _, _, lines = here(capsys, 'evaluate', tmp_path / folder, tmp_path / 't', *more)
        assert code == 1 and len(lines) == 1 and said in lines[0], (folder, more, lines)
    _, _, notes, _ = here(capsys, 'evaluate', tmp_path / 'p', tmp_path / 't')
    assert any('label maps' in n for n in notes), notes
    _, _, notes, _ = here(
        capsys,
        'evaluate',
        tmp_path / 'p',
        tmp_path / 't',
        '--masks',
        '--classes',
        '1:a,2:b,3:c,7:x',
    )
    assert any('class x occurs in no truth' in n for n in notes), notes


# ---------------------------------------------------------------- what cannot be measured: one line
def litter(root):
    grey(root)
    for d in 'pt':
        for n in ('._sub-00_1.png', '.DS_Store', 'Thumbs.db', '__MACOSX/._sub-01_1.png'):
            (root / d / n).parent.mkdir(exist_ok=True)
            (root / d / n).write_bytes(b'no image')


def test_hidden_files_do_not_count(tmp_path, capsys):
    litter(tmp_path)
    code, numbers, notes, _ = here(capsys, 'evaluate', tmp_path / 'p', tmp_path / 't')
    assert code == 0 and 'psnr' in numbers
    for d in 'pt':
        (tmp_path / d / 'sub-90.bmp').write_bytes(b'')
    code, _, notes, _ = here(capsys, 'evaluate', tmp_path / 'p', tmp_path / 't')
    assert code == 0 and any('1 files of kinds that are not read' in n for n in notes), notes


def painted(root):
    grey(root)
    im = Image.open(root / 'p' / 'sub-00_1.png').convert('RGBA')
    im.putalpha(0)
    im.save(root / 'p' / 'sub-00_1.png')


def palette(root):
    grey(root)
    Image.open(root / 'p' / 'sub-00_1.png').convert('P').save(root / 'p' / 'sub-00_1.png')


def mixed(root):
    grey(root)
    brains(root)
    for q in (root / 'p').glob('*_T1w*'):
        q.rename(root / 'p' / q.name.replace('T1w', 'T2w'))


def exchanged(root):
    grey(root)
    (root / 'p' / 'xmodal.json').write_text('{"xmodal": {}}')
    (root / 'p').rename(root / 'x')
    (root / 't').rename(root / 'p')
    (root / 'x').rename(root / 't')


def infinite(v, a, i):
    return np.where(v > v.mean(), np.inf, v), a


def moved(v, a, i):
    return v, a + np.outer([2, 0, 0, 0], [0, 0, 0, 1])


def many(v, a, i):
    return np.stack([v, v], -1), a


REFUSED = dict(
    rgba=(painted, 'alpha'),
    palette=(palette, 'palette'),
    mixed=(mixed, 'images and volumes'),
    order=(exchanged, 'translations first'),
    infinite=(lambda r: brains(r, infinite), 'infinite'),
    affine=(lambda r: brains(r, moved), '2.00 mm away'),
    four_d=(lambda r: brains(r, many), '4-D'),
    depth=(
        lambda r: (
            grey(r),
            grey(
                r / 'x', ending='.png', form=lambda v: (65535 * np.clip(v, 0, 1)).astype(np.uint16)
            ),
            shutil.rmtree(r / 'p'),
            (r / 'x' / 'p').rename(r / 'p'),
        ),
        'uint16',
    ),
    empty_file=(lambda r: (grey(r), (r / 'p' / 'sub-01_1.png').write_bytes(b'')), 'sub-01_1.png'),
    gone=(lambda r: (grey(r), (r / 'p' / 'sub-01_1.png').unlink()), 'has no translation'),
    extra=(
        lambda r: (grey(r), shutil.copy(r / 'p' / 'sub-01_1.png', r / 'p' / 'sub-99_1.png')),
        'has no truth',
    ),
    twice=(lambda r: (grey(r), shutil.copytree(r / 'p', r / 'p' / 'sub')), 'has the same name'),
    nothing=(lambda r: [(r / d).mkdir() for d in 'pt'], 'holds no'),
    file_for_folder=(
        lambda r: (grey(r), shutil.rmtree(r / 't'), shutil.copy(r / 'p' / 'sub-01_1.png', r / 't')),
        '',
    ),
    floats=(lambda r: grey(r, ending='.tif', form=lambda v: v.astype(np.float32)), 'LO:HI'),
)


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_measured_is_one_line(name, tmp_path, capsys):
    make, words = REFUSED[name]
    make(tmp_path)
    code, numbers, _, lines = here(
        capsys, 'evaluate', tmp_path / 'p', tmp_path / 't', '--out', tmp_path / 'run'
    )
    assert code == 1 and len(lines) == 1 and words in lines[0] and not numbers, lines
    assert not (tmp_path / 'run').exists()


def test_one_volume_in_four_dimensions_and_subfolders_are_measured(tmp_path, capsys):
    brains(tmp_path, lambda v, a, i: (v[..., None], a))
    (tmp_path / 'p' / 'deep').mkdir()
    shutil.move(tmp_path / 'p' / 'sub-01_T1w.nii.gz', tmp_path / 'p' / 'deep')
    code, numbers, _, lines = here(capsys, 'evaluate', tmp_path / 'p', tmp_path / 't')
    assert code == 0 and numbers['psnr'] > 25, lines


def test_a_mask_in_one_colour_counts(tmp_path, capsys):
    "A mask drawn in green is a mask, not an empty one."
    grey(tmp_path)
    for i in range(6):
        green = np.zeros((SIZE, SIZE, 3), np.uint8)
        green[10:40, 10:40, 1] = 255
        save(tmp_path / 'm' / f'sub-{i:02d}_1.png', green)
    code, numbers, _, lines = here(
        capsys, 'evaluate', tmp_path / 'p', tmp_path / 't', '--mask', tmp_path / 'm'
    )
    assert code == 0 and 'psnr' in numbers, lines


def test_names_that_say_another_modality(tmp_path, capsys):
    brains(tmp_path)
    for q in list((tmp_path / 'p').iterdir()):
        q.rename(q.with_name(q.name.replace('_T1w', '_desc-synth_T2w')))
    for q in list((tmp_path / 't').iterdir()):
        q.rename(q.with_name(q.name.replace('_T2w', '_FLAIR')))
    code, _, notes, _ = here(capsys, 'evaluate', tmp_path / 'p', tmp_path / 't')
    assert code == 0 and any('its name says T2w, that of its truth FLAIR' in n for n in notes), (
        notes
    )


# ---------------------------------------------------------------- what is said once
def test_the_protocol_is_printed_once_above_its_numbers(tmp_path, capsys):
    from xmodal.cli import main

    grey(tmp_path)
    for i in range(6):
        save(tmp_path / 'r' / f'sub-{i:02d}_1.png', np.full((SIZE, SIZE), 1 + i % 2, np.uint8))
        both = np.zeros((SIZE, SIZE), np.uint8)
        both[10:30, 10:30] = 255
        for side in ('mp', 'mt'):
            save(tmp_path / side / f'sub-{i:02d}_1.png', both)
    folders = [str(tmp_path / 'p'), str(tmp_path / 't')]
    assert main(['evaluate', *folders, '--roi', str(tmp_path / 'r')]) == 0
    out = capsys.readouterr().out
    assert out.count('protocol fixed') == 1 and out.count('inside the label') == 1, out
    lines = out.splitlines()
    at = next(i for i, v in enumerate(lines) if 'protocol fixed' in v)
    assert lines[at + 1].startswith('psnr ') and 'dB' in lines[at + 1]
    assert main(['evaluate', str(tmp_path / 'mp'), str(tmp_path / 'mt'), '--masks']) == 0
    assert capsys.readouterr().out.count('masks: distances') == 1


# ---------------------------------------------------------------- names that meet
SENTINEL = 'ROIs1868_summer_{}_59_p{}'


def test_names_meet_without_the_word_of_their_modality_wherever_it_stands(tmp_path, capsys):
    for i in range(4):
        v = bytes_of(scene(i))
        save(tmp_path / 'p' / f'{SENTINEL.format("s1", i)}.png', np.roll(v, 1, 0))
        save(tmp_path / 't' / f'{SENTINEL.format("s2", i)}.png', v)
        save(tmp_path / 'm' / f'{SENTINEL.format("mask", i)}.png', np.ones_like(v))
    folders = tmp_path / 'p', tmp_path / 't'
    code, numbers, notes, lines = here(
        capsys, 'evaluate', *folders, '--mask', tmp_path / 'm', '--out', tmp_path / 'run'
    )
    assert code == 0 and numbers['psnr'] > 15, lines
    told = [n for n in notes if 'files count as' in n]  # four patches are one scene
    group = re.search(r"give group '(.*?)' \(--group", told[0])[1]
    code, _, _, _ = here(capsys, 'evaluate', *folders, '--group', group, '--out', tmp_path / 'run')
    kept = json.loads((tmp_path / 'run' / 'metrics.json').read_text())
    assert code == 0 and kept['subjects'] == ['ROIs1868_summer_s2_59']


@pytest.mark.parametrize(
    'preds, truths, said',
    [
        (['T1_{}', 'T2_{}'], ['FLAIR_{}'], 'both would be'),  # which of the two?
        (['{}_s1_x'], ['s2_{}_x', 's1_{}_x'], 'both would be'),
        (['patch_s1_7{}'], ['patch_s2_8{}'], 'has no truth'),
    ],
)
def test_names_that_meet_in_two_ways_are_refused(preds, truths, said, tmp_path, capsys):
    for side, names in dict(p=preds, t=truths).items():
        for i in range(2):
            for name in names:
                save(tmp_path / side / f'{name.format(i)}.png', bytes_of(scene(i)))
    code, _, _, lines = here(capsys, 'evaluate', tmp_path / 'p', tmp_path / 't')
    assert code == 1 and len(lines) == 1 and said in lines[0], lines


def test_people_that_were_recognised_are_not_doubted(tmp_path, capsys):
    for i in range(1, 5):
        save(tmp_path / 'p' / f'3_0{i}_P_T2.png', bytes_of(scene(i)))
        save(tmp_path / 't' / f'3_0{i}_P_CT.png', np.roll(bytes_of(scene(i)), 1, 0))
    code, _, notes, _ = here(
        capsys, 'evaluate', tmp_path / 'p', tmp_path / 't', '--out', tmp_path / 'run'
    )
    kept = json.loads((tmp_path / 'run' / 'metrics.json').read_text())
    assert code == 0 and kept['subjects'] == [f'3_0{i}_P' for i in range(1, 5)]
    assert not [n for n in notes if 'files count as' in n], notes


# ---------------------------------------------------------------- two grids
def on_other_grids(root, name='sub-{}_CT', n=3, f=lambda v: v):
    "Truths of 2 mm and translations of 4 mm whose field of view ends earlier."
    x, y, z = np.meshgrid(*map(np.arange, (40, 44, 24)), indexing='ij')
    for i in range(n):
        t = (10.0 * x + 6 * y + 3 * z + 40 * i).astype(np.float32)
        save(root / 't' / f'{name.format(i)}.nii.gz', f(t))
        (root / 'p').mkdir(exist_ok=True)
        coarse = nib.Nifti1Image(f(t)[::2, ::2, ::2][:, :-4], np.diag([4.0, 4, 4, 1]))
        nib.save(coarse, root / 'p' / f'{name.format(i)}.nii.gz')


def test_another_grid_has_a_way_out(tmp_path, capsys):
    on_other_grids(tmp_path)
    words = ['evaluate', tmp_path / 'p', tmp_path / 't', '--window', '0:800']
    code, _, _, lines = here(capsys, *words)
    assert code == 1 and len(lines) == 1 and '--onto truth' in lines[0], lines
    code, numbers, notes, lines = here(
        capsys, *words, '--onto', 'truth', '--per', 'volume', '--out', tmp_path / 'run'
    )
    assert code == 0 and numbers['mae'] < 2e-3, (numbers, lines)  # a plane is linear
    assert len([n for n in notes if 'resampled onto the grids of their truths' in n]) == 1
    assert any('were not measured' in n for n in notes), notes  # beyond the field of view
    kept = json.loads((tmp_path / 'run' / 'metrics.json').read_text())
    assert 'resampled' in kept['protocol'] and 'p' in kept['scores']
    assert not list((tmp_path / 'p').glob('*onto*'))


def test_labels_go_onto_another_grid_by_their_nearest_voxel(tmp_path, capsys):
    on_other_grids(tmp_path, f=lambda v: (v // 200).astype(np.float32))
    words = ['evaluate', tmp_path / 'p', tmp_path / 't', '--masks', '--classes', '1:a,2:b,3:c']
    code, _, _, lines = here(capsys, *words)
    assert code == 1 and '--onto truth' in lines[0], lines
    code, numbers, notes, lines = here(capsys, *words, '--onto', 'truth')
    assert code == 0 and numbers['b dice'] > 0.9 and any('nearest' in n for n in notes), lines


def test_pictures_have_no_place_to_be_resampled_by(tmp_path, capsys):
    grey(tmp_path, lambda p, i: p[::2, ::2])
    words = ['evaluate', tmp_path / 'p', tmp_path / 't']
    code, _, _, lines = here(capsys, *words)
    assert code == 1 and '--onto' not in lines[0] and 'one size' in lines[0], lines
    code, _, _, lines = here(capsys, *words, '--onto', 'truth')
    assert code == 1 and 'a picture has no' in lines[0], lines
    brains(tmp_path / 'v', n=2)
    words = ['evaluate', tmp_path / 'v' / 'p', tmp_path / 'v' / 't', '--onto', 'truth']
    code, _, _, lines = here(capsys, *words, '--rigid', '--source', tmp_path / 'v' / 't')
    assert code == 1 and '--rigid' in lines[0] and '--onto' in lines[0], lines
