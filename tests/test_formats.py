"""Volumes of other formats than NIfTI, in and out: they lie on their source's grid for the programs
that read them; DICOM series; planes."""

import contextlib, json, warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from small_model import VOLUME, echo

from xmodal.core import InputError
from xmodal.data.dicom import open_dicom
from xmodal.data.formats import VOLUME_ENDINGS, write_volume
from xmodal.data.layouts import find_records, guess_layout
from xmodal.data.cache import prepare
from xmodal.data.volumes import load_volume, open_volume
from xmodal.evaluation.cohort import files_of, match, read_one
from xmodal.folders import translate_paths

sitk = pytest.importorskip('SimpleITK')
pydicom = pytest.importorskip('pydicom')


def turned(*zooms, axes='RAS'):
    "An oblique affine whose axes run mainly to these directions."
    from scipy.spatial.transform import Rotation

    A = np.eye(4)
    A[:3, :3] = Rotation.from_euler('xyz', (11, -7, 17), degrees=True).as_matrix() @ np.diag(zooms)
    A[:3, 3] = -31.25, 12.5, 77.75
    ornt = nib.orientations.axcodes2ornt(axes)
    return nib.Nifti1Image(np.zeros((3, 3, 3)), A).as_reoriented(ornt).affine


def scan(path, affine, shape=(14, 12, 6), seed=0):
    "A volume of smooth whole numbers in the format of the ending."
    from scipy.ndimage import gaussian_filter

    v = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    v = ((v - v.min()) / np.ptp(v) * 1000).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(nib.Nifti1Image(v, affine), path, path)
    return path


def slices(folder, n=12, iop=(1, 0, 0, 0, 1, 0), step=3.0, skip=(), **said):
    "A DICOM series of smooth pixels."
    folder.mkdir(parents=True, exist_ok=True)
    normal, series = np.cross(iop[:3], iop[3:]), pydicom.uid.generate_uid()
    grid = np.stack(np.meshgrid(*map(np.arange, (n, 20, 24)), indexing='ij'))
    v = (500 + 400 * np.sin(grid / 4).prod(0)).astype('<u2')
    for k in sorted(set(range(n)) - set(skip)):
        d = pydicom.dataset.Dataset()
        d.file_meta = pydicom.dataset.FileMetaDataset()
        d.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        d.SOPClassUID, d.SOPInstanceUID = pydicom.uid.MRImageStorage, pydicom.uid.generate_uid()
        d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID
        d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID
        d.SeriesInstanceUID, d.StudyInstanceUID, d.FrameOfReferenceUID = series, '1.2.3', '1.2.3.4'
        d.Modality, d.PatientID, d.PatientName, d.EchoTime = 'MR', 'p7', 'Anon^7', 90
        d.InstanceNumber, d.SeriesNumber = n - k, 4
        d.ImagePositionPatient = [
            round(float(x), 5) for x in np.array([-50, -60, 7]) + k * step * normal
        ]
        d.ImageOrientationPatient, d.PixelSpacing, d.SliceThickness = list(iop), [2.5, 3.0], step
        d.Rows, d.Columns, d.SamplesPerPixel = 20, 24, 1
        d.PhotometricInterpretation, d.PixelRepresentation = 'MONOCHROME2', 0
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelData = 16, 16, 15, v[k].tobytes()
        for name, value in said.items():
            setattr(d, name, value)
        d.save_as(folder / f'A{n - k:03}.dcm', enforce_file_format=True)
    return folder


def run(tr, source, output, **how):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return translate_paths(tr, source, output, progress=False, **how)


def seen_by_itk(path):
    "Origin, spacing and direction as SimpleITK has them; of a folder its DICOM series."
    if path.is_dir():
        reader = sitk.ImageSeriesReader()
        (uid,) = reader.GetGDCMSeriesIDs(str(path))
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path), uid))
        image = reader.Execute()
    else:
        image = sitk.ReadImage(str(path))
    return np.array([*image.GetOrigin(), *image.GetSpacing(), *image.GetDirection()])


@pytest.fixture(scope='module')
def tr():
    "Answers with its source, in numbers of the source."
    return echo(VOLUME, spacing=2.0, target_window=[0.0, 1000.0], target_dtype='int16')


def times(folder):
    "When each file below a folder was written last."
    return {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file()}


ITK = ('.nii.gz', '.nii', '.nrrd', '.nhdr', '.mha', '.mhd', '.hdr')


@pytest.mark.parametrize('ending', VOLUME_ENDINGS)
def test_a_volume_comes_back_on_its_own_grid(ending, tr, tmp_path):
    "Every format, oblique: voxels and place of the translation are those of its source."
    source = scan(tmp_path / f'in{ending}', turned(2, 2, 3, axes='PIR'))
    out = tmp_path / 'o' / f'out{ending}'
    assert run(tr, source, out) == []
    written = times(out.parent)
    assert run(tr, source, out) == []  # finished, and its digests are right
    assert times(out.parent) == written
    one, other = open_volume(source), open_volume(out)
    assert np.array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
    assert other.get_data_dtype().newbyteorder('=') == np.int16
    assert np.abs(one.affine - other.affine).max() <= 1e-14
    if ending in ITK:
        assert np.abs(seen_by_itk(source) - seen_by_itk(out)).max() <= 1e-14
    left = [p.name for p in out.parent.iterdir() if p.name.startswith('.')]
    assert left == []


@pytest.mark.parametrize('ending', ITK)
@pytest.mark.parametrize('given', ('.mha', '.nrrd', '.nii.gz'))
def test_the_output_has_the_ending_that_was_asked_for(given, ending, tr, tmp_path):
    source = scan(tmp_path / f'in{given}', turned(2, 2, 3, axes='ALS'))
    out = tmp_path / f'out{ending}'
    run(tr, source, out)
    single = ending in ('.nii.gz', '.nii', '.hdr') or given == '.nii.gz'  # float32 in a header
    assert np.abs(seen_by_itk(source) - seen_by_itk(out)).max() <= (2e-5 if single else 1e-13)
    assert np.array_equal(load_volume(source).dataobj, load_volume(out).dataobj)


def test_maps_beside_other_formats(tr, tmp_path):
    source = scan(tmp_path / 'in.nrrd', turned(2, 2, 3))
    run(tr, source, tmp_path / 'out.nrrd', samples=2, mix=True)
    assert open_volume(tmp_path / 'out_std.nrrd').shape == (14, 12, 6)
    mix = sitk.ReadImage(str(tmp_path / 'out_mix.nrrd'))
    assert mix.GetSize() == (14, 12, 6) and mix.GetNumberOfComponentsPerPixel() == 2
    assert np.abs(np.array(mix.GetDirection()) - seen_by_itk(source)[6:]).max() < 1e-15


def test_a_folder_of_mixed_formats(tr, tmp_path, capsys):
    for name in ('a.mha', 'b.hdr', 'c.nii.gz', 'd.mhd'):
        scan(tmp_path / 'in' / name, turned(2, 2, 3))
    assert run(tr, tmp_path / 'in', tmp_path / 'out') == []
    assert capsys.readouterr().out == ''  # b.img and d.raw are parts of what is translated
    made = sorted(p.name for p in (tmp_path / 'out').iterdir() if p.suffix != '.json')
    assert made == ['a.mha', 'b.hdr', 'b.img', 'c.nii.gz', 'd.mhd', 'd.raw']
    truth = match(tmp_path / 'out', tmp_path / 'in')
    assert [c.pred.name for c in truth] == ['a.mha', 'b.img', 'c.nii.gz', 'd.mhd']
    assert np.array_equal(read_one(truth[0].pred)[0], read_one(truth[0].truth)[0])


def test_changed_voxels_of_a_pair_are_noticed(tr, tmp_path):
    "The voxels of a .mhd lie in another file: a cache and notes see them too."
    one = scan(tmp_path / 'A' / 'x.mhd', turned(2, 2, 3))
    scan(tmp_path / 'B' / 'x.nii.gz', turned(2, 2, 3))
    records = find_records('folder', tmp_path)
    how = dict(size=16, cache=tmp_path / 'cache', progress=False)
    first = prepare(records, **how).folder
    run(tr, one, tmp_path / 'out.mha')
    raw = one.with_suffix('.raw')
    raw.write_bytes(np.roll(np.frombuffer(raw.read_bytes(), '<i2'), 3).tobytes())
    assert prepare(records, **how).folder != first
    with pytest.raises(InputError, match='made from another'):
        run(tr, one, tmp_path / 'out.mha')


def test_what_says_nothing_of_its_place_is_refused(tr, tmp_path):
    "An NRRD file without space, an ANALYZE file without orientation."
    v = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.int16)
    head = 'NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nspacings: 2 2 2\nencoding: raw\n'
    (tmp_path / 'x.nrrd').write_bytes(f'{head}endian: little\n\n'.encode() + v.tobytes())
    nib.AnalyzeImage(v, np.diag([2.0, 2, 2, 1])).to_filename(tmp_path / 'y.img')
    for name, words in (('x.nrrd', 'no orientation'), ('y.img', 'ANALYZE')):
        with pytest.raises(InputError, match=words):
            run(tr, tmp_path / name, tmp_path / f'out{Path(name).suffix}')


def test_one_point_in_time_is_a_volume_and_a_series_is_not(tr, tmp_path):
    v = np.random.default_rng(0).integers(0, 999, (8, 9, 4, 3)).astype(np.int16)
    nib.save(nib.Nifti1Image(v[..., :1], np.diag([2.0, 2, 3, 1])), tmp_path / 'one.nii.gz')
    nib.save(nib.Nifti1Image(v, np.diag([2.0, 2, 3, 1])), tmp_path / 'many.nii.gz')
    sitk.WriteImage(sitk.GetImageFromArray(v.T[:1], isVector=False), str(tmp_path / 'one.nrrd'))
    sitk.WriteImage(sitk.GetImageFromArray(v.T, isVector=False), str(tmp_path / 'many.nrrd'))
    nib.MGHImage(v.astype(np.float32), np.diag([2.0, 2, 3, 1])).to_filename(tmp_path / 'many.mgz')
    run(tr, tmp_path / 'one.nii.gz', tmp_path / 'out.nii.gz')
    assert nib.load(tmp_path / 'out.nii.gz').shape == (8, 9, 4, 1)
    assert load_volume(tmp_path / 'one.nrrd').shape == (8, 9, 4)
    for name in ('many.nii.gz', 'many.nrrd', 'many.mgz'):
        with pytest.raises(InputError, match='4-D.*extract one volume of a series .fslroi'):
            run(tr, tmp_path / name, tmp_path / f'x{name[4:]}')


c, s = np.cos(0.3), np.sin(0.3)
PLANES = dict(axial=(1, 0, 0, 0, c, s), sagittal=(0, 1, 0, 0, 0, -1), coronal=(1, 0, 0, 0, 0, -1))


@pytest.mark.parametrize('plane', PLANES)
def test_a_series_becomes_a_series(plane, tr, tmp_path):
    "GDCM and pydicom find it where its source is; it is another series of the same patient."
    source = slices(tmp_path / 'in', iop=PLANES[plane])
    out = tmp_path / 'made'
    assert run(tr, source, out, samples=2) == []
    written = times(tmp_path)
    assert run(tr, source, out, samples=2) == []  # finished
    assert times(tmp_path) == written
    assert np.array_equal(seen_by_itk(source), seen_by_itk(out))
    one, other = open_dicom(source), open_dicom(out)
    assert np.array_equal(one.affine, other.affine) and one.shape == other.shape
    old, new = (pydicom.dcmread(q.extra['dicom'][0]) for q in (one, other))
    for k in ('PatientID', 'PatientName', 'StudyInstanceUID', 'FrameOfReferenceUID'):
        assert old[k].value == new[k].value
    for k in ('SeriesInstanceUID', 'SOPInstanceUID', 'SeriesNumber'):
        assert old[k].value != new[k].value
    assert new.ImageType == ['DERIVED', 'SECONDARY'] and new.EchoTime is None
    assert new.SeriesDescription == 'xmodal synthetic T2w from T1w, not for diagnosis'
    assert new.SourceImageSequence[0].ReferencedSOPInstanceUID == old.SOPInstanceUID
    assert json.loads((tmp_path / 'made.json').read_text())['Source'] == 'in'
    assert (tmp_path / 'made_std.nii.gz').is_file()


@pytest.mark.parametrize('target, kind', [('PET', 'PT'), ('CT', 'CT'), ('T2w', 'MR'), ('B', 'OT')])
def test_a_series_is_of_the_kind_that_was_made(tmp_path, target, kind):
    "Whatever it was made from: here an MR."
    tr = echo(VOLUME, spacing=3.0, target_window=[0.0, 1000.0], target_dtype='int16', target=target)
    source = slices(tmp_path / 'in')
    run(tr, source, tmp_path / 'made')
    head = pydicom.dcmread(open_dicom(tmp_path / 'made').extra['dicom'][0])
    capture = head.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
    assert head.Modality == kind and capture == (kind in ('PT', 'OT'))
    assert np.array_equal(seen_by_itk(source), seen_by_itk(tmp_path / 'made'))
    changes = json.loads((tmp_path / 'made.json').read_text())['Changes']
    assert any('OT (other)' in t for t in changes) == (kind == 'OT')


def test_series_out_keeps_values_to_the_stated_precision(tmp_path):
    tr = echo(VOLUME, spacing=3.0, target_window=[0.0, 0.01], target_dtype='float32')
    source = slices(tmp_path / 'in')
    run(tr, source, tmp_path / 'made')
    run(tr, source, tmp_path / 'made.nii.gz')
    series, nifti = open_dicom(tmp_path / 'made'), nib.load(tmp_path / 'made.nii.gz')
    head = pydicom.dcmread(series.extra['dicom'][0])
    step = float(head.DerivationDescription.split('each by ')[1].split()[0])
    assert 0 < step < 1e-6
    assert np.abs(series.get_fdata() - nifti.get_fdata()).max() <= 1.02 * step + 1e-9


def test_a_folder_of_series(tr, tmp_path):
    "Each its own; one with a gap is named and stops no other; nobody's files are removed."
    slices(tmp_path / 'in' / 'p1')
    slices(tmp_path / 'in' / 'p2', skip=(5,))
    ((path, why),) = run(tr, tmp_path / 'in', tmp_path / 'out')
    assert path.name == 'p2' and 'gap' in why
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['p1', 'p1.json']
    kept = tmp_path / 'out' / 'p1' / 'mine.txt'
    kept.write_text('x')
    with pytest.raises(InputError, match='mine.txt'):
        run(tr, tmp_path / 'in' / 'p1', tmp_path / 'out' / 'p1', overwrite=True, seed=1)
    kept.unlink()
    assert run(tr, tmp_path / 'in' / 'p1', tmp_path / 'out' / 'p1', overwrite=True, seed=1) == []
    with pytest.raises(InputError, match='no ending, for a new DICOM series'):
        run(tr, tmp_path / 'in' / 'p1', tmp_path / 'x.dcm')
    (case,) = match(tmp_path / 'out' / 'p1', tmp_path / 'in' / 'p1')
    assert read_one(case.pred)[0].shape == (12, 20, 24)


def test_what_is_no_series_in_a_folder_of_series_is_said(tr, tmp_path, capsys):
    slices(tmp_path / 'in' / 'p1')
    slices(tmp_path / 'in' / 'p2' / 'T1')
    (tmp_path / 'in' / 'p3').mkdir()
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match='file: is a file; a folder is translated into a folder'):
        run(tr, tmp_path / 'in', tmp_path / 'file')
    with pytest.raises(InputError, match='in: is the input itself'):
        run(tr, tmp_path / 'in', tmp_path / 'in')
    capsys.readouterr()
    assert run(tr, tmp_path / 'in', tmp_path / 'out') == []
    assert 'not translated, because they are folders' in (said := capsys.readouterr().out)
    assert said.endswith(': p2, p3\n')


def test_a_stray_slice_hides_no_volume(tr, tmp_path):
    "A folder is a series only if it holds nothing else that is read."
    for name in ('a.nii.gz', 'b.nii.gz'):
        scan(tmp_path / 'in' / name, turned(2, 2, 3))
    slices(tmp_path / 'in', n=1)
    with pytest.warns(UserWarning, match='first: A001.dcm'):
        assert sorted(files_of(tmp_path / 'in', 'truth')) == ['a', 'b']
    slices(tmp_path / 'in' / 'c')
    with pytest.warns(UserWarning, match='1 files of kinds that are not read'):
        assert sorted(files_of(tmp_path / 'in', 'truth')) == ['a', 'b', 'c']
    assert run(tr, tmp_path / 'in', tmp_path / 'out') == []
    made = sorted(p.name for p in (tmp_path / 'out').glob('*.nii.gz'))
    assert made == ['a.nii.gz', 'b.nii.gz']


def test_series_are_known_by_what_they_hold(tmp_path):
    "Scanners deliver slices without an ending; a text with the ending of slices is none."
    for patient in ('p1', 'p2'):
        for word in ('mr', 'ct'):
            for p in slices(tmp_path / 'in' / patient / word, n=2).iterdir():
                p.rename(p.with_suffix(''))
    assert guess_layout(tmp_path / 'in') == ('folder', 'mr', 'ct', 2)
    found = find_records('folder', tmp_path / 'in', 'mr', 'ct')
    assert [r.source.parent.name for r in found] == ['p1', 'p2']
    with pytest.raises(InputError, match='looks like data set folder .2 pairs.'):
        find_records('bids', tmp_path / 'in')
    for patient in ('p1', 'p2'):
        for word in ('mr', 'ct'):
            (tmp_path / 'texts' / patient / word).mkdir(parents=True)
            (tmp_path / 'texts' / patient / word / 'notes.dcm').write_text('x' * 200)
    assert guess_layout(tmp_path / 'texts') == ()


THICK = dict(axial=(2, 2, 5), coronal=(2, 5, 2), sagittal=(5, 2, 2))


@pytest.mark.parametrize('axes', ('RAS', 'PIR', 'LSA'))
@pytest.mark.parametrize('plane', THICK)
def test_every_plane_comes_back(plane, axes, tmp_path):
    "A network that answers with its input restores the volume exactly, oblique, in every plane."
    tr = echo(VOLUME, spacing=2.0, plane=plane, target_window=[0.0, 1000.0], target_dtype='int16')
    img = nib.load(scan(tmp_path / 'x.nii.gz', turned(*THICK[plane], axes=axes), (13, 11, 9)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # a stack in the model's own plane is no concern
        got = tr.maps(img, samples=2, mix=True, progress=False)
    assert np.array_equal(got['mean'].dataobj, img.dataobj)
    assert got['std'].shape == img.shape and got['mix'].shape[:3] == img.shape
    assert np.abs(np.asarray(got['std'].dataobj)).max() <= 1e-3


def test_a_stack_in_another_plane_is_said(tmp_path):
    tr = echo(VOLUME, spacing=2.0, target_window=[0.0, 1000.0], target_dtype='int16')
    img = nib.load(scan(tmp_path / 'x.nii.gz', turned(5, 2, 2)))
    with pytest.warns(
        UserWarning, match='stack of sagittal slices 5 mm apart; the model takes axial'
    ):
        tr.translate(img, progress=False)


def test_training_slices_are_cut_in_the_plane_of_the_scans(tmp_path, capsys):
    "auto: sagittal for sagittal stacks, axial for isotropic ones; the caches differ; None forgotten."
    kept = {}
    for name, zooms in dict(thick=(5, 2, 2), even=(2, 2, 2)).items():
        for side in 'AB':
            scan(tmp_path / name / side / 'p.nii.gz', turned(*zooms, axes='PIR'), (15, 12, 14))
        records = find_records('folder', tmp_path / name)
        for plane in ('auto', 'axial', 'sagittal'):
            ready = prepare(records, 16, 2.0, cache=tmp_path / 'c', progress=False, plane=plane)
            kept[name, plane] = ready.folder, ready.index['params'].get('plane', 'axial')
    assert kept['thick', 'auto'] == kept['thick', 'sagittal'] != kept['thick', 'axial']
    assert kept['even', 'auto'] == kept['even', 'axial'] != kept['even', 'sagittal']
    assert 'sagittal plane' in capsys.readouterr().out
    with pytest.raises(InputError, match='plane must be auto, axial'):
        prepare(records, 16, 2.0, cache=tmp_path / 'c', plane='oblique')


def test_train_on_series_and_translate_one(tmp_path):
    "Case 13: a data set of sagittal DICOM series; the model knows its plane."
    from xmodal.cli import main
    from xmodal.train import train_command as train

    rows = ['source,target,subject']
    for k in range(3):
        slices(tmp_path / f's{k}', iop=PLANES['sagittal'], step=7.0)
        rows.append(f's{k},s{k},p{k}')
    (tmp_path / 'pairs.csv').write_text('\n'.join(rows) + '\n')
    with contextlib.chdir(tmp_path):
        train(
            '--dataset csv --root . --name m --check False --smoke --size 24 --steps 2 '
            '--device cpu --baseline False'.split()
        )
        model = json.loads(Path('runs/m/model/config.json').read_text())
        assert model['data']['plane'] == 'sagittal'
        code = main(['translate', 'runs/m/model', 's0', 'out.nii.gz', '--steps', '1'])
        assert not code
    assert nib.load(tmp_path / 'out.nii.gz').shape == (24, 20, 12)
