"Which files a model takes, by their names: never the target, another source or somebody else's."

import warnings

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from small_model import IMAGE, VOLUME, echo
from xmodal.core import InputError
from xmodal.folders import translate_paths
from xmodal.translate import further_sources

QUIET = dict(progress=False)


def volumes(folder, *names):
    "Small volumes of these names, all of them different."
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        x = np.random.default_rng(k).integers(0, 900, (20, 22, 3)).astype('i2')
        nib.Nifti1Image(x, np.diag([3.0, 3, 3, 1])).to_filename(folder / f'{name}.nii.gz')
    return folder


def taken(tr, folder, **how):
    "The names of what is made of a folder."
    out = folder.parent / 'out'
    assert translate_paths(tr, folder, out, **QUIET, **how) == []
    return sorted(p.name.partition('.')[0] for p in out.glob('*.nii.gz'))


def test_of_contrasts_side_by_side_the_first_source_is_taken(tmp_path, capsys):
    tr = echo(VOLUME, source='T1w,FLAIR', further=1)
    folder = volumes(tmp_path / 'anat', 'sub-0_T1w', 'sub-0_FLAIR', 'sub-0_T2w')
    assert taken(tr, folder) == ['sub-0_T2w']  # made of sub-0_T1w
    said = capsys.readouterr().out
    assert '2 of 3 files are left out' in said and 'sub-0_FLAIR.nii.gz, sub-0_T2w.nii.gz' in said


@pytest.mark.parametrize(
    'names, expected',
    [
        (('1_T1w', '1_T2w', '1_PD', '1_mask'), ['1_T2w']),
        (('1', '2_T2w'), ['1']),
        (('1', '2'), ['1', '2']),
        (('1_t1', '2_T1n_brain'), ['1_T2w', '2_T1n_brain']),
    ],
)
def test_a_model_of_one_source_leaves_other_words_out(names, expected, tmp_path):
    assert taken(echo(VOLUME), volumes(tmp_path / 'in', *names)) == expected


def test_force_takes_them_and_a_folder_of_others_is_refused(tmp_path):
    folder = volumes(tmp_path / 'in', '1_T2w', '2_T2w')
    with pytest.raises(InputError, match='holds no T1w by the names .*1_T2w.*--force'):
        translate_paths(echo(VOLUME), folder, tmp_path / 'no', **QUIET)
    with pytest.warns(UserWarning, match='is a T2w'):
        assert taken(echo(VOLUME), folder, force=True) == ['1_T2w', '2_T2w']


def test_words_of_a_data_set_of_pictures(tmp_path):
    tr, folder = echo(IMAGE, source='A', target='B'), tmp_path / 'in'
    folder.mkdir()
    for name in ('1_A', '1_B', 'plan_b_3'):
        Image.fromarray(np.full((20, 20), 90, np.uint8)).save(folder / f'{name}.png')
    assert translate_paths(tr, folder, tmp_path / 'out', **QUIET) == []
    assert [p.name for p in (tmp_path / 'out').glob('*.png')] == ['1_A.png']
    with pytest.warns(UserWarning, match='is a B by its name, and this model translates A'):
        translate_paths(tr, folder / '1_B.png', tmp_path / 'b.png', **QUIET)


def test_a_name_in_the_middle_counts_too(tmp_path):
    path = volumes(tmp_path, '1_T2w_brain') / '1_T2w_brain.nii.gz'
    with pytest.raises(InputError, match='is a T2w by its name, and this model translates T1w'):
        echo(VOLUME).translate(path)


@pytest.mark.parametrize(
    'first, second, refused',
    [
        ('sub-0_FLAIR', 'sub-0_T1w', 'source 2 of 2 .T1w,FLAIR. is the FLAIR, and .* called T1w'),
        ('sub-0_T1w', 'sub-0_T1w', 'the FLAIR, and sub-0_T1w.nii.gz is called T1w'),
        ('1', '1', 'the same file as source 1; give --more the FLAIR'),
        ('sub-0_T1w', 'sub-1_FLAIR', 'is of sub-1, and the first source of sub-0'),
        ('sub-0_FLAIR', '1', 'is a FLAIR, and this model translates T1w'),
    ],
)
def test_sources_in_the_wrong_place_are_refused(first, second, refused, tmp_path):
    tr = echo(VOLUME, source='T1w,FLAIR', further=1)
    volumes(tmp_path, *{first, second})
    paths = [tmp_path / f'{v}.nii.gz' for v in (first, second)]
    with pytest.raises(InputError, match=refused):
        tr.translate(paths[0], more=paths[1:])
    with pytest.warns(UserWarning, match='.forced.'):
        tr.translate(paths[0], more=paths[1:], force=True)


def test_another_session_is_said_and_what_fits_is_not(tmp_path):
    tr = echo(VOLUME, source='T1w,FLAIR', further=1)
    volumes(tmp_path, 'sub-0_ses-1_T1w', 'sub-0_ses-1_FLAIR', 'sub-0_ses-2_FLAIR')
    at = lambda name: tmp_path / f'{name}.nii.gz'
    with pytest.warns(UserWarning, match='is of ses-2, and the first source of ses-1'):
        tr.translate(at('sub-0_ses-1_T1w'), more=[at('sub-0_ses-2_FLAIR')])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        tr.translate(at('sub-0_ses-1_T1w'), more=[at('sub-0_ses-1_FLAIR')])


def test_bids_takes_the_first_of_several_sources(tmp_path):
    tr = echo(VOLUME, source='T1w,FLAIR', further=1)
    volumes(tmp_path / 'in' / 'sub-0' / 'anat', 'sub-0_T1w', 'sub-0_FLAIR', 'sub-0_T2w')
    assert translate_paths(tr, tmp_path / 'in', tmp_path / 'out', bids=True, **QUIET) == []
    made = [p.name for p in (tmp_path / 'out').rglob('*.nii.gz')]
    assert made == ['sub-0_desc-synth_T2w.nii.gz']


@pytest.mark.parametrize(
    'wrong, word',
    [
        (dict(overlap=1.0), 'overlap must be 0 or more and below 1'),
        (dict(overlap=float('nan')), 'overlap'),
        (dict(batch=0), 'batch'),
        (dict(samples=0), 'samples'),
        (dict(steps=0), 'steps'),
        (dict(seed=0.5), 'seed'),
        (dict(planes='axail'), "did you mean 'axial'"),
        (dict(planes='axial'), 'need a model of all planes'),
    ],
)
def test_options_are_refused_before_a_file_is_read(wrong, word, tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    for name in '12':
        (folder / f'{name}.nii.gz').write_bytes(b'nothing that could be read')
    with pytest.raises(InputError, match=word):
        translate_paths(echo(VOLUME, tile=16), folder, tmp_path / 'out', **QUIET, **wrong)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('words', [('T1', 'FLAIR'), ('0', '1'), ('0000', '0001')])
def test_channels_of_nnunet_are_told_apart_by_table_and_number(words, tmp_path):
    tr = echo(VOLUME, dataset='nnunet', source=words[0], target=words[1])
    folder = volumes(tmp_path / 'imagesTs', 'case_7_0000', 'case_7_0001', 'case_8_0002')
    table = '{"channel_names": {"0": "T1", "1": "FLAIR", "2": "T1ce"}}'
    (tmp_path / 'dataset.json').write_text(table)
    assert taken(tr, folder) == ['case_7_0000']
    how = dict(QUIET, force=True)  # a known modality is refused, a number only doubted
    with pytest.warns(UserWarning, match=f'is a {words[1]} by its name'):
        translate_paths(tr, folder / 'case_7_0001.nii.gz', tmp_path / 'o.nii.gz', **how)


@pytest.mark.parametrize('words', ['T1,FLAIR', '0,1'])
def test_further_channels_of_nnunet_lie_beside_the_first(words, tmp_path):
    tr = echo(VOLUME, dataset='nnunet', source=words, target='labels', further=1)
    folder = volumes(tmp_path / 'imagesTs', 'case_7_0000', 'case_7_0001', 'case_70_0001')
    (tmp_path / 'dataset.json').write_text('{"channel_names": {"0": "T1", "1": "FLAIR"}}')
    found = further_sources(tr.data, folder / 'case_7_0000.nii.gz')
    assert [p.name for p in found] == ['case_7_0001.nii.gz']


def test_without_a_table_a_model_of_names_takes_every_file_as_before(tmp_path):
    tr = echo(VOLUME, dataset='nnunet', source='T1', target='FLAIR')
    folder = volumes(tmp_path / 'imagesTs', 'case_7_0000', 'case_8_0000')
    assert taken(tr, folder) == ['case_7_0000', 'case_8_0000']


def test_an_answer_in_a_folder_is_named_by_what_it_is(tmp_path):
    "A CT that is called T2 would be taken for an MR."
    tr = echo(VOLUME, source='T2', target='CT')
    folder = volumes(tmp_path / 'in', '1_01_P_T2', '1_02_P-t2w', 'T2_3', 'plain')
    named = volumes(tmp_path / 'names', 'a_T2', 'b_T2')
    assert taken(tr, named) == ['a_CT', 'b_CT']
    out = tmp_path / 'there'
    assert translate_paths(tr, folder / '1_01_P_T2.nii.gz', tmp_path / 'x_T2.nii.gz', **QUIET) == []
    assert (tmp_path / 'x_T2.nii.gz').exists(), 'a name that was typed stays'
    out.mkdir()
    assert translate_paths(tr, folder / '1_02_P-t2w.nii.gz', out, **QUIET) == []
    assert (out / '1_02_P-CT.nii.gz').exists()
    (out / '1_02_P-CT.nii.gz').rename(out / '1_02_P-t2w.nii.gz')  # as an earlier version named it
    (out / '1_02_P-CT.json').rename(out / '1_02_P-t2w.json')
    assert translate_paths(tr, folder / '1_02_P-t2w.nii.gz', out, **QUIET) == []
    assert not (out / '1_02_P-CT.nii.gz').exists()
    assert taken(tr, volumes(tmp_path / 'two' / 'in', 'plain', 'plain2')) == ['plain', 'plain2']
    both = volumes(tmp_path / 'both' / 'in', 'a_T2', 'a_CT')
    assert taken(tr, both, force=True) == ['a_CT', 'a_T2']
