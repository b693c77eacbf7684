"""What people install: the wheel and what it says of itself, the plain install without any extra,
the BIDS App as a process, container recipes, the conda recipe, and the papers that travel along.
"""

import ast, importlib.metadata, json, os, re, shlex, subprocess, sys, zipfile
from configparser import ConfigParser
from email.parser import HeaderParser
from pathlib import Path, PurePath

import make_recipe
import pytest
from packaging.requirements import Requirement
from test_project import copy_project, tracked
from test_translate import bids_faults

import xmodal
from xmodal.core import InputError
from xmodal.training.model_folder import FORMAT, load_config

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ('text', 'notebook', 'features', 'dicom', 'itk', 'geo', 'monai', 'register')


def name_of(package) -> str:
    "A package's name as all registries spell it."
    return re.sub(r'[-_.]+', '-', str(package)).lower()


def settings(root=ROOT) -> dict:
    ini = ConfigParser(delimiters=['='])
    ini.read(root / 'settings.ini', encoding='utf-8')
    return ini['DEFAULT']


def names_in(key) -> set:
    "Names of packages in a line of settings.ini."
    return {name_of(Requirement(r).name) for r in settings()[key].split()}


# --- the wheel


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel of this project, made of a copy so that no old build folder takes part."
    folder = tmp_path_factory.mktemp('wheel')
    copy = copy_project(ROOT, folder / 'copy')
    cmd = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index']
    done = subprocess.run([*cmd, '-w', folder, copy], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(folder.glob('*.whl'))


def metadata_of(wheel):
    "What a wheel says of itself."
    with zipfile.ZipFile(wheel) as z:
        name = next(n for n in z.namelist() if n.endswith('.dist-info/METADATA'))
        return HeaderParser().parsestr(z.read(name).decode())


def test_the_wheel_says_what_it_is(wheel):
    said = metadata_of(wheel)
    classes = said.get_all('Classifier')
    for part in (
        'License :: OSI Approved :: Apache Software License',
        'Operating System :: OS Independent',
        'Typing :: Typed',
        'Topic :: Scientific/Engineering :: Image Processing',
        *(f'Programming Language :: Python :: 3.{n}' for n in (11, 12, 13)),
    ):
        assert part in classes
    urls = dict(line.split(', ', 1) for line in said.get_all('Project-URL'))
    assert {'Documentation', 'Source', 'Issues', 'Changelog'} <= set(urls)
    assert (ROOT / urls['Changelog'].rsplit('/', 1)[1]).is_file()
    assert said['Requires-Python'] == '>=' + settings()['min_python']
    assert said['Version'] == xmodal.__version__ and said['Name'] == 'xmodal'


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as z:
        held = {n for n in z.namelist() if '.dist-info/' not in n}
        rest = {PurePath(n).name for n in z.namelist()} - {PurePath(n).name for n in held}
    ours = {p.as_posix() for p in tracked(ROOT) if p.parts[0] == 'xmodal'}
    assert held == ours and 'xmodal/py.typed' in held
    assert {'LICENSE', 'entry_points.txt', 'METADATA'} <= rest


# --- what is needed, and by which extra it comes


def test_extras_are_what_settings_say(wheel):
    "`all` is every extra of users, and who develops has all of them: `make env` lacks nothing."
    said = [Requirement(line) for line in metadata_of(wheel).get_all('Requires-Dist')]
    under = lambda x: {
        name_of(r.name) for r in said if r.marker and r.marker.evaluate({'extra': x})
    }
    plain = {name_of(r.name) for r in said if not r.marker}
    assert plain == names_in('requirements')
    for extra in EXTRAS:
        assert under(extra) == names_in(f'{extra}_requirements')
    assert under('all') == set().union(*map(under, EXTRAS))
    assert under('dev') == names_in('dev_requirements') | under('all')
    assert "'.[dev,docs]'" in (ROOT / 'Makefile').read_text(encoding='utf-8')
    kept = 'nbdev papermill jupyterlab ipywidgets matplotlib torch diffusers open-clip-torch'
    kept += ' nibabel scikit-image torchmetrics'
    assert set(kept.split()) <= plain | under('dev')


def imported(code) -> set:
    "Packages that a module imports anywhere, `import_extra` included."
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'import_extra':
            found |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant)}
    return {name.split('.')[0] for name in found}


def undeclared(modules: dict, declared: set) -> list:
    "Imports of packages that no requirement brings by its own name. modules: name -> code."
    owners = importlib.metadata.packages_distributions()
    out = []
    for where, code in modules.items():
        for package in sorted(imported(code) - set(sys.stdlib_module_names) - {'xmodal'}):
            if not {name_of(d) for d in owners.get(package, [package])} & declared:
                out.append(f'{where} imports {package}, which settings.ini does not name')
    return out


def test_every_import_is_declared():
    keys = ['requirements', *(f'{x}_requirements' for x in EXTRAS)]
    declared = set().union(*map(names_in, keys))
    code = {p.name: p.read_text(encoding='utf-8') for p in (ROOT / 'xmodal').rglob('*.py')}
    assert not undeclared(code, declared)
    assert undeclared({'x.py': 'def f():\n    import pytest'}, declared)  # the test can fail
    assert undeclared({'x.py': "import_extra('hypothesis.x', 'text', 'x')"}, declared)


# --- the plain install, `pip install xmodal`: nothing but the requirements and what they need


def closure(names) -> set:
    "Installed packages that these need, and those that they need, by their metadata."
    todo, found = [*names], set()
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        needs = [Requirement(r) for r in importlib.metadata.requires(name) or ()]
        todo += [name_of(r.name) for r in needs if not r.marker or r.marker.evaluate({'extra': ''})]
    return found


def linked(names, folder) -> Path:
    "A folder that holds nothing but these packages, as links to what is installed here."
    folder.mkdir()
    for name in names:
        dist = importlib.metadata.distribution(name)
        for top in {PurePath(f).parts[0] for f in dist.files}:
            there = Path(dist.locate_file(top))
            if top not in ('..', '__pycache__') and there.exists():
                (folder / top).exists() or (folder / top).symlink_to(there)
    return folder


@pytest.fixture(scope='module')
def plain(wheel, tmp_path_factory):
    "An environment that has the wheel and the requirements of settings.ini, and no extra."
    folder = tmp_path_factory.mktemp('plain')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder / 'venv'], check=True)
    cmd = [sys.executable, '-m', 'pip', '--python', folder / 'venv/bin/python', 'install']
    cmd += ['--quiet', '--no-deps', '--no-index', wheel]
    done = subprocess.run(cmd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    packages = linked(closure(names_in('requirements')), folder / 'packages')
    site = next((folder / 'venv/lib').glob('python*/site-packages'))
    (site / 'plain.pth').write_text(str(packages))
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    program = folder / 'venv/bin/xmodal'

    def run(*words, program=program):
        return subprocess.run(
            [program, *map(str, words)], cwd=folder, env=env, capture_output=True, text=True
        )

    run.folder, run.python = folder, folder / 'venv/bin/python'
    return run


def test_the_plain_install_lacks_the_extras(plain):
    "Else the next tests would show nothing."
    code = 'import importlib.util as u, sys; print(*[n for n in sys.argv[1:] if u.find_spec(n)])'
    gone = 'open_clip transformers torchvision timm papermill ipykernel ipywidgets IPython'
    gone += ' jupyterlab nbdev fastcore pydicom SimpleITK monai rasterio'
    done = plain('-c', code, *gone.split(), program=plain.python)
    assert (done.returncode, done.stdout.strip()) == (0, ''), done.stderr
    where = plain('-c', 'import xmodal; print(xmodal.__file__)', program=plain.python).stdout
    assert where.startswith(str(plain.folder))


@pytest.fixture(scope='module')
def trained(plain):
    "A training of the plain install, in its smallest form."
    done = plain(*'train --smoke --name s'.split())
    assert done.returncode == 0, done.stderr[-2000:]
    return plain


def test_the_plain_install_translates_and_measures(trained):
    root = next((trained.folder / 'data/made').iterdir())
    for line in (
        f'translate runs/s/model {root} bids --bids --steps 1',
        f'translate runs/s/model {root}/sub-002/anat/sub-002_T1w.nii.gz x.nii.gz --flips left-right',
        f'evaluate bids/sub-001/anat/sub-001_desc-synth_T2w.nii.gz'
        f' {root}/sub-001/anat/sub-001_T2w.nii.gz --out measured',
        f'calibrate runs/s/model --dataset bids --root {root}',
        'report runs',
        f'data check bids --root {root}',
    ):
        done = trained(*line.split())
        assert done.returncode == 0, (line, done.stderr[-2000:])


LACKS = {
    "import xmodal.metadata.encoder as m; m.load_clip('biomedclip')": 'xmodal[text]',
    "import xmodal.metadata.encoder as m; m.listed_weights('ViT-B-32/x')": 'xmodal[text]',
    "import xmodal.nets.latent as m; m.empty_prompt('hf://a/b')": 'xmodal[text]',
    "import xmodal.training.terms as m, pathlib; m.open_timm(pathlib.Path('x'))": 'xmodal[features]',
    'import xmodal.data.register as m; m.rigid(0, 0)': 'xmodal[register]',
    'import xmodal.nets.build as m; m.monai_unet()': 'xmodal[monai]',
}


@pytest.mark.parametrize('code', LACKS)
def test_what_lacks_names_its_extra(code, plain):
    done = plain('-c', code, program=plain.python)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('xmodal.core.InputError') and LACKS[code] in last, done.stderr[-800:]


# --- the BIDS App


def copied_to(docker: str) -> list:
    "What a Dockerfile copies from the project."
    lines = re.sub(r'\\\n', ' ', docker).splitlines()
    return [w for line in lines if line.startswith('COPY ') for w in shlex.split(line)[1:-1]]


def entrypoint(docker: str) -> list:
    return json.loads(re.search(r'^ENTRYPOINT (\[.*\])$', docker, re.M)[1])


def filed(apptainer: str) -> list:
    "What an Apptainer definition copies from the project."
    block = re.search(r'^%files\n(.*?)\n\n', apptainer, re.M | re.S)[1]
    return [line.split()[0] for line in block.splitlines()]


def complaints(docker, apptainer) -> list:
    "What is wrong with the two recipes of a container."
    out = [f'{p} is copied and not there' for p in copied_to(docker) if not (ROOT / p).exists()]
    programs = [line.split('=')[0].strip() for line in settings()['console_scripts'].splitlines()]
    if entrypoint(docker)[0] not in programs:
        out.append(f'ENTRYPOINT {entrypoint(docker)} is no program of settings.ini')
    if f'exec {entrypoint(docker)[0]} "$@"' not in apptainer:
        out.append('the two begin with another program')
    if sorted(copied_to(docker)) != sorted(filed(apptainer)):
        out.append('the two copy other files')
    cpu = '--index-url https://download.pytorch.org/whl/cpu torch'
    return out + [f'no {cpu}' for text in (docker, apptainer) if cpu not in text]


def test_containers_can_be_built_of_what_is_there():
    docker = (ROOT / 'deploy/Dockerfile').read_text(encoding='utf-8')
    apptainer = (ROOT / 'deploy/apptainer.def').read_text(encoding='utf-8')
    assert not complaints(docker, apptainer)
    for old, new in (('COPY xmodal', 'COPY xmoodal'), ('["xmodal"]', '["xm"]'), ('/whl/cpu', '')):
        assert old in docker and complaints(docker.replace(old, new), apptainer)
    sent = (ROOT / 'deploy/Dockerfile.dockerignore').read_text(encoding='utf-8').split()
    assert {w[1:] for w in sent if w.startswith('!')} == set(copied_to(docker))
    # what the package is built of, and the extras that are asked for, are there
    assert {'settings.ini', 'setup.py', 'README.md', 'LICENSE', 'xmodal'} <= set(copied_to(docker))
    asked = [re.search(r"'\.\[([\w,]+)\]'", text)[1] for text in (docker, apptainer)]
    assert asked[0] == asked[1] and set(asked[0].split(',')) <= set(EXTRAS)


def test_the_app_is_called_as_bids_apps_are(trained):
    "The program of the container as a process of its own, in an environment without extras."
    root = next((trained.folder / 'data/made').iterdir())
    assert entrypoint((ROOT / 'deploy/Dockerfile').read_text(encoding='utf-8')) == ['xmodal']
    words = f'{root} app participant --model runs/s/model --steps 1 --skip-bids-validator'.split()
    done = trained(*words, '--participant_label', '001', 'sub-003')
    assert done.returncode == 0, done.stderr
    out = trained.folder / 'app'
    assert sorted(p.name for p in out.glob('sub-*')) == ['sub-001', 'sub-003']
    assert len(list(out.glob('sub-*/anat/*_desc-synth_T2w.nii.gz'))) == 2
    assert not bids_faults(out)
    again = trained('bids-app', *words, '--participant-label', '002', '--seed', '3')
    assert again.returncode == 0 and (out / 'sub-002').is_dir(), again.stderr
    same = trained('translate', 'runs/s/model', root, 'same', '--bids', '--steps', '1')
    assert same.returncode == 0, same.stderr
    name = 'sub-001/anat/sub-001_desc-synth_T2w.nii.gz'
    assert (out / name).read_bytes() == (trained.folder / 'same' / name).read_bytes()


REFUSED = {
    '{root} app group': (1, 'use participant'),
    '{root} app participant': (1, '--model'),
    '{root} app participants --model runs/s/model': (2, "'participants'"),
    '{root} app': (2, 'analysis_level'),
    'gone app participant --model runs/s/model': (1, 'gone'),
    '{root} app participant --model gone': (1, 'gone'),
    '{root} app participant --model runs/s/model --participant-label 99': (1, '99'),
}


@pytest.mark.parametrize('line', REFUSED)
def test_the_app_refuses_in_one_line(line, trained):
    root = next((trained.folder / 'data/made').iterdir())
    code, says = REFUSED[line]
    done = trained(*line.format(root=root).split())
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == code and says in last and last.startswith('xmodal'), done.stderr


@pytest.mark.parametrize('words', ['--version', 'bids-app --version'])
def test_the_app_says_its_version(words, plain):
    done = plain(*words.split())
    assert (done.returncode, done.stdout) == (0, f'xmodal {settings()["version"]}\n')


# --- the conda recipe


def test_the_conda_recipe_says_what_settings_say():
    import yaml

    text = (ROOT / make_recipe.PLACE).read_text(encoding='utf-8')
    assert text == make_recipe.text_of(), 'run python tests/make_recipe.py'
    recipe = yaml.safe_load(text)
    wheels = {conda: name for name, conda in make_recipe.CONDA.items()}
    names = lambda lines: {name_of(wheels.get(n, n)) for n in (line.split()[0] for line in lines)}
    run = recipe['requirements']['run']
    assert names(run) - {'python'} == names_in('requirements')
    extras = [names_in(f'{x}_requirements') for x in EXTRAS]
    assert names(recipe['requirements']['run_constraints']) == set().union(*extras)
    assert recipe['context'] == dict(version=settings()['version'], python_min='3.11')
    assert set(make_recipe.EXTRAS) == set(EXTRAS)


def test_another_requirement_changes_the_recipe(tmp_path):
    ini = (ROOT / 'settings.ini').read_text(encoding='utf-8')
    (tmp_path / 'settings.ini').write_text(ini.replace('torch>=2.6', 'torch>=2.7 zarr>=3'))
    text = make_recipe.text_of(tmp_path)
    assert '- pytorch >=2.7\n' in text and '- zarr >=3\n' in text


# --- versions


def test_a_release_has_its_place_in_the_changelog():
    text = (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')
    heads = re.findall(r'^## (\S+)', text, re.M)
    assert heads[0] == 'Unreleased' and heads[1] == settings()['version']
    assert xmodal.__version__ == settings()['version']
    cited = (ROOT / 'CITATION.cff').read_text(encoding='utf-8')
    assert f'version: {settings()["version"]}' in cited


def test_older_formats_of_models_open_and_newer_ones_are_refused(monkeypatch, tmp_path):
    kept = ROOT / 'tests/goldens/model'
    config = json.loads((kept / 'config.json').read_text(encoding='utf-8'))
    assert config['format'] == 1 and config['xmodal'] == '0.1.0'  # this folder is never rewritten
    monkeypatch.setattr('xmodal.training.model_folder.FORMAT', FORMAT + 1)
    assert load_config(kept) == config
    monkeypatch.undo()
    for found, remedy in ((FORMAT + 1, 'update xmodal'), (0, 'damaged'), (True, 'damaged')):
        (tmp_path / 'config.json').write_text(json.dumps({**config, 'format': found}))
        with pytest.raises(InputError, match=f'reads format {FORMAT}; .*{remedy}') as e:
            load_config(tmp_path)
        assert '\n' not in str(e.value)
