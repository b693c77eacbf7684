"""The command line as a promise: verbs, help that explains and comes at once, guesses at what
was meant, files of options, windows below zero, and a package that says what it is.
"""

import contextlib, io, json, pkgutil, re, shlex, subprocess, sys, time
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest

import xmodal
import xmodal.train
from xmodal.cli import commands, main, make_parser, note_line
from xmodal.job import JOB_TOPICS, NOISE_RULES
from xmodal.options import joined

ROOT = Path(__file__).parents[1]
LEAVES = {
    'train': [],
    'translate': ['m', 'i', 'o'],
    'bids-app': ['i', 'o', 'participant'],
    'evaluate': ['p', 't'],
    'calibrate': ['m'],
    'report': ['r'],
    'models': [],
    'demo': [],
    'data check': ['bids'],
    'data difficulty': ['bids'],
    'data get': ['ixi'],
}
EVERY = ['', *LEAVES, 'data', 'data list', 'data info']


def said(run, *words):
    "Exit code, standard output and standard error of a command in this process."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run([str(w) for w in words])
        except SystemExit as e:
            code = e.code or 0
    return code, out.getvalue(), err.getvalue()


def options_of(verb, *words) -> dict:
    "What a verb makes of some words."
    a = make_parser().parse_args([*verb.split(), *LEAVES[verb], *map(str, words)])
    return {k: v for k, v in vars(a).items() if k != 'config'}


@pytest.fixture
def jobs(monkeypatch):
    "The jobs that are begun; none is carried out."
    begun = []
    monkeypatch.setattr(xmodal.train, 'run', begun.append)
    return begun


# --- verbs, explained at once


VERBS = 'train translate bids-app evaluate segmenter calibrate page report data models demo'


def test_all_verbs_are_in_the_help():
    assert set(commands) == set(VERBS.split())
    _, out, _ = said(main, '--help')
    assert all(f'\n    {verb}' in out for verb in commands)


@pytest.mark.parametrize('verb', EVERY)
def test_help_needs_nothing_heavy(verb):
    code = (
        'import sys\nfrom xmodal.cli import main\n'
        f'try: main({[*verb.split(), "--help"]!r})\n'
        'except SystemExit as e: assert not e.code\n'
        'print([m for m in ("torch", "numpy", "diffusers", "matplotlib") if m in sys.modules])'
    )
    start = time.perf_counter()
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert r.stdout.startswith('usage') and r.stdout.endswith('[]\n'), r.stdout[-300:] + r.stderr
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize('verb', EVERY)
def test_help_points_to_no_notebook(verb):
    "A wheel holds none."
    code, out, _ = said(main, *verb.split(), '--help')
    assert code == 0 and not [w for w in ('ipynb', 'nbs/', 'notebook') if w in out.lower()]


@pytest.mark.parametrize('verb', LEAVES)
def test_every_option_is_explained(verb):
    parser = make_parser().parse_known(joined([*verb.split(), *LEAVES[verb]]))[1]
    for action in parser._actions:
        hidden = action.help == '==SUPPRESS=='
        assert hidden == any(n.startswith('--no-') for n in action.option_strings), action
        assert action.help, action
        plain = action.default in (None, '', (), False, '==SUPPRESS==')
        assert plain or 'default' in action.help, action


def test_groups_defaults_and_choices():
    _, train, _ = said(main, 'train', '--help')
    assert all(f'\n{topic}:\n' in train for topic in JOB_TOPICS) and '\nmore:\n' not in train
    for f in fields(xmodal.train.Job):
        assert f'--{f.name.replace("_", "-")} ' in train, f.name
        together = ' '.join(train.split())
        assert f.default == '' or f'(default: {f.default})' in together, f.name
    _, translate, _ = said(main, 'translate', '--help')
    assert all(f'\n{topic}:\n' in translate for topic in ('translation', 'machine', 'files'))
    assert '--tau {zero,markov,vp,half}' in translate and '(default: 8)' in translate


# --- xmodal train is python -m xmodal.train

JOBS = [
    '',
    '--smoke',
    '--smoke True --check False --dataset bids --root set --name x',
    '--source-window -1000:400 --target_window 0:80 --made-voxel 2.5 --options eta=0.5,order=2',
    '--method metadb --mults 1,2,2 --ema -1 --precision bf16 --channels-last',
]


@pytest.mark.parametrize('words', JOBS)
def test_train_runs_the_same_job(words, jobs):
    for run in (xmodal.train.train_command, lambda w: main(['train', *w])):
        assert said(run, *words.split())[0] == 0
    assert jobs[0] == jobs[1] and (words == '') == (jobs[0] == xmodal.train.Job())


def test_every_parameter_arrives(jobs):
    "Each has another value than its default, and none is forgotten on the way."
    other = {str: 'x', int: 7, float: 0.7, bool: None}
    want = {f.name: other[f.type] or not f.default for f in fields(xmodal.train.Job)}
    want['processes'] = 1  # others are for notebooks
    words = [f'--{k.replace("_", "-")}={v}' for k, v in want.items()]
    assert said(main, 'train', *words)[0] == 0
    got = asdict(jobs[0])
    # what was typed is decided by hand, beside what was named
    assert got.pop('by_hand').split(',') == [want.pop('by_hand'), *xmodal.job.PLANNED]
    assert got == want


def help_of(run, *words):
    "A help text from its first group on; the usage and the description name the command."
    code, out, _ = said(run, *words, '--help')
    assert code == 0
    return out[out.index('\ndata:\n') :]


def test_train_has_one_parser():
    "Both names have the same options, in the same groups, with the same words."
    assert help_of(main, 'train') == help_of(xmodal.train.train_command)


def test_python_m_train_reads_a_file(tmp_path, jobs):
    file = tmp_path / 'job.yaml'
    file.write_text('steps: 5\ncheck: false\nsmoke: true\nmults: [1, 2]\n')
    words = ('--config', file, '--seed', 3, '--no-smoke')
    assert said(xmodal.train.train_command, *words)[0] == 0
    assert said(main, 'train', *words)[0] == 0
    want = xmodal.train.Job(steps=5, check=False, mults='1,2', seed=3)
    assert jobs == [want, want]


def test_train_parses_once(jobs, monkeypatch):
    "The words of `xmodal train` are not put together and read a second time."
    from xmodal.options import Parser

    read, once = [], Parser.parse_args
    monkeypatch.setattr(Parser, 'parse_args', lambda *a, **k: read.append(a) or once(*a, **k))
    assert said(main, 'train', '--steps', 7)[0] == 0 and len(read) == len(jobs) == 1


OFF = [
    '--no-baseline',
    '--baseline False',
    '--baseline=false',
    '--no_baseline',
    '--no-baseline True',
]


@pytest.mark.parametrize('words', OFF)
def test_a_switch_of_a_job_has_two_spellings(words, jobs):
    for run in (xmodal.train.train_command, lambda w: main(['train', *w])):
        assert said(run, *words.split())[0] == 0 and not jobs.pop().baseline


SWITCHED = {'': False, '--force': True, '--force True': True, '--force=true': True}
SWITCHED |= {'--force False': False, '--no-force': False, '--force --no-force': False}
SWITCHED |= {'--no-force False': True, '--force --force=False': False}


@pytest.mark.parametrize('place', ['{} m i o', 'm i {} o', 'm i o {}'])
@pytest.mark.parametrize('words', SWITCHED)
def test_a_switch_has_two_spellings(words, place):
    found = make_parser().parse_args(['translate', *place.format(words).split()])
    assert found.force == SWITCHED[words]
    assert (found.model, found.input, found.output) == ('m', 'i', 'o')


def test_a_switch_is_true_or_false():
    code, _, err = said(main, 'translate', 'm', 'i', 'o', '--force=maybe')
    assert code == 2 and err.endswith("argument --force: must be True or False, got 'maybe'\n")


def test_noise_rules_are_those_of_the_step(jobs):
    "`--tau`, a training and config.json know the same words."
    from xmodal.sample import rules
    from xmodal.training.model_folder import DATA_RULES

    assert NOISE_RULES == tuple(rules) and all(map(DATA_RULES['tau'][1], rules))
    for rule in rules:
        assert make_parser().parse_args(['translate', 'm', 'i', 'o', '--tau', rule]).tau == rule
        assert said(main, 'train', '--tau', rule)[0] == 0 and jobs.pop().tau == rule


# --- an unknown option

LOST = {
    'translate --stpes 5': '--stpes 5',
    'translate --stpes 5 m i o': '--stpes 5',
    'translate m i o extra': 'extra',
    'data check bids --taget T2w': '--taget T2w',
    'data get ixi --onyl x': '--onyl x',
    'data info ixi --stpes': '--stpes',
    'train --stpes 5': '--stpes 5',
}


@pytest.mark.parametrize('words', LOST)
def test_the_verb_answers_for_its_options(words):
    "Its own usage stands above, and no complaint about what is missing comes first."
    code, _, err = said(main, *words.split())
    verb = ' '.join(words.split()[: 2 if words.startswith('data') else 1])
    assert code == 2 and err.startswith(f'usage: xmodal {verb} '), err
    assert err.endswith(f'xmodal {verb}: error: unrecognized arguments: {LOST[words]}\n'), err
    assert ('--stpes' in words and 'info' not in words) <= ('did you mean --steps?' in err)


@pytest.mark.parametrize('words', ['--smoke maybe', '--steps many', '--processes 2'])
def test_train_refuses_in_the_same_words(words, jobs):
    one = said(xmodal.train.train_command, *words.split())
    assert one == said(main, 'train', *words.split()) and one[0] == 2 and not jobs
    assert one[2].startswith('error: ') and one[2].count('\n') == 1


# --- did you mean?

MEANT = {
    'translate model in out --draws 3': '--samples',
    'train --samples 3': '--draws',
    'translat m i o': 'translate',
    'data chek': 'check',
    'train --stepz 3': '--steps',
    'train --sorce-window=0:1': '--source-window',
    'translate m i o --stepz 3': '--steps',
    'translate m i o --tau markv': 'markov',
    'evaluate p t --protocl fixed': '--protocol',
    'data check bids --taget T2w': '--target',
    'report r --uot x': '--out',
}


@pytest.mark.parametrize('words', MEANT)
def test_did_you_mean(words):
    code, out, err = said(main, *words.split())
    *_, hint, last = err.splitlines()
    assert (code, out) == (2, '') and hint.endswith(f'did you mean {MEANT[words]}?'), err
    assert ' error: ' in last


def test_nothing_is_guessed_for_nonsense():
    code, _, err = said(main, 'translate', 'm', 'i', 'o', '--xyzzy')
    assert code == 2 and 'did you mean' not in err


def test_python_m_train_guesses_too():
    code, _, err = said(xmodal.train.train_command, '--stepz', 3)
    *_, hint, last = err.splitlines()
    assert code == 2 and hint == 'python -m xmodal.train: did you mean --steps?'
    assert last == 'python -m xmodal.train: error: unrecognized arguments: --stepz 3'


# --- files of options

WANTED = dict(steps=5, seed=3, tau='vp', precision='no', bids=True)
WANTED |= {'participant-label': ['01', '02'], 'save_mix': False, 'target': dict(TE=120, field=3)}
TOML = (
    'steps = 5\nseed = 3\ntau = "vp"\nprecision = "no"\nbids = true\nsave_mix = false\n'
    'participant-label = ["01", "02"]\ntarget = {TE = 120, field = 3}\n'
)
YAML = (
    'steps: 5\nseed: 3\ntau: vp\nprecision: no\nbids: true\nsave_mix: false\n'
    'participant-label: [01, 02]\ntarget: {TE: 120, field: 3}\n'
)
FORMATS = {'.json': json.dumps(WANTED), '.toml': TOML, '.yaml': YAML, '.yml': YAML}


@pytest.fixture
def config(tmp_path):
    "Write a file of options."

    def write(text, ending='.json'):
        path = tmp_path / f'options{ending}'
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        return path

    return write


@pytest.mark.parametrize('ending', FORMATS)
def test_config_is_as_if_typed(ending, config):
    typed = '--steps 5 --seed 3 --tau vp --precision no --bids --target TE=120,field=3'.split()
    want = options_of('translate', *typed, '--participant-label', '01', '02')
    assert options_of('translate', '--config', config(FORMATS[ending], ending)) == want
    assert want != options_of('translate')


@pytest.mark.parametrize('place', ['before', 'after'])
def test_typed_options_win(place, config):
    file = ['--config', config(WANTED)]
    typed = ['--steps', 9, '--no-bids', '--participant-label', '07']
    words = [*file, *typed] if place == 'before' else [*typed, *file]
    a = options_of('translate', *words)
    assert (a['steps'], a['bids'], a['participant_label'], a['seed']) == (9, False, ['07'], 3)


@pytest.mark.parametrize('first', [True, False])
def test_config_and_the_places(first, config):
    "A list in the file does not swallow the model, the input and the output."
    file, places = ['--config', str(config({'participant-label': ['01']}))], ['m', 'i', 'o']
    a = make_parser().parse_args(['translate', *(file + places if first else places + file)])
    assert (a.model, a.input, a.output, a.participant_label) == ('m', 'i', 'o', ['01'])


def test_config_of_a_training(config, jobs):
    kept = dict(dataset='bids', source_window=[-1000, 400], mults=[1, 2], check=False, lr=1e-3)
    kept |= dict(smoke=True, options=dict(eta=0.5, clip=True))
    assert said(main, 'train', '--config', config(kept), '--steps', 7, '--smoke', False)[0] == 0
    (job,) = jobs
    want = dict(dataset='bids', source_window='-1000:400', mults='1,2', check=False, lr=1e-3)
    want |= dict(steps=7, options='eta=0.5,clip=True')
    assert job == xmodal.train.Job(**want)


@pytest.mark.parametrize('verb', LEAVES)
def test_every_verb_reads_a_file(verb, config):
    assert options_of(verb, '--config', config({})) == options_of(verb)
    words = [*verb.split(), *LEAVES[verb], '--config', config(dict(xyzzy=1))]
    code, _, err = said(make_parser().parse_args, *words)  # not main: it would begin to train
    assert code == 2 and "unknown option 'xyzzy'" in err


WRONG = {
    'stepz: 5': "unknown option 'stepz'",
    'model: m': "unknown option 'model'",
    'config: c.yaml': "unknown option 'config'",
    'help: true': "unknown option 'help'",
    'force: yes': 'force must be true or false',
    'steps: many': "invalid int value: 'many'",
    'tau: euler': "invalid choice: 'euler'",
    '- steps': 'must hold names of options',
    'steps: [': 'cannot be read',
}


@pytest.mark.parametrize('text', WRONG)
def test_wrong_files_are_refused(text, config):
    path = config(text, '.yaml')
    code, out, err = said(main, 'translate', 'm', 'i', 'o', '--config', path)
    assert (code, out) == (2, '') and WRONG[text] in err.splitlines()[-1], err
    assert ('did you mean steps?' in err) == (text == 'stepz: 5')


@pytest.mark.parametrize('name', ['none.yaml', 'options.ini', ''])
def test_files_that_are_none(name, tmp_path):
    code, _, err = said(main, 'translate', 'm', 'i', 'o', '--config', f'{tmp_path}/{name}')
    assert code == 2 and str(tmp_path) in err.splitlines()[-1]


# --- windows below zero

SPELT = ['{} -1000 400', '{} -1000:400', '{}=-1000:400', '{}=-1000 400']


@pytest.mark.parametrize('spelt', SPELT)
@pytest.mark.parametrize(
    'verb, name',
    [
        ('evaluate', 'window'),
        ('evaluate', 'pred-window'),
        ('evaluate', 'hu'),
        ('data check', 'source-window'),
        ('data check', 'target-window'),
        ('train', 'source-window'),
        ('train', 'target_window'),
    ],
)
def test_negative_windows(verb, name, spelt):
    a = options_of(verb, *spelt.format(f'--{name}').split())
    assert a[name.replace('-', '_')] == '-1000:400'
    a = make_parser().parse_args([*verb.split(), *spelt.format(f'--{name}').split(), *LEAVES[verb]])
    assert vars(a)[name.replace('-', '_')] == '-1000:400'


@pytest.mark.parametrize('spelt', SPELT)
def test_negative_windows_of_python_m_train(spelt, jobs):
    assert said(xmodal.train.train_command, *spelt.format('--source-window').split())[0] == 0
    assert jobs[0].source_window == '-1000:400'


def test_other_numbers_stay_apart():
    assert joined('--batch 8 9 --seed -1 -2 x'.split()) == [
        '--batch',
        '8',
        '9',
        '--seed=-1',
        '-2',
        'x',
    ]
    assert joined('--window minmax 1 2'.split()) == '--window minmax 1 2'.split()
    assert joined(['a_b', '--name', 'c_d', '--root=e_f']) == ['a_b', '--name', 'c_d', '--root=e_f']


# --- a package that says what it is


def fresh(code) -> str:
    "What a new Python prints that has imported nothing but xmodal."
    r = subprocess.run(
        [sys.executable, '-c', f'import sys, xmodal\n{code}'],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return r.stdout + r.stderr


def test_names_are_loaded_when_used():
    loaded = '"torch" in sys.modules'
    assert fresh(f'print({loaded}); xmodal.Translator; print({loaded})') == 'False\nTrue\n'
    assert (
        fresh('print(xmodal.train.run.__name__, xmodal.bridge.__name__)') == 'run xmodal.bridge\n'
    )
    assert "has no attribute 'Translater'" in fresh('xmodal.Translater')


def test_help_fits_on_two_screens():
    lines = xmodal.__doc__.splitlines()
    first = xmodal.__doc__.split('Rooms (')[0].splitlines()
    assert len(first) <= 24 and len(lines) <= 48 and max(map(len, lines)) <= 100
    shown = fresh('help(xmodal)')
    assert all(f'    {name} ' in shown for name in xmodal._homes)
    assert 'class Translator' not in shown  # that is help(xmodal.Translator)


def test_every_name_and_room_of_the_help_exists():
    for name in xmodal._homes:
        assert getattr(xmodal, name).__doc__, name
    rooms = xmodal.__doc__.split('is in one):')[1].split('Without Python')[0]
    named = [w for line in rooms.split('\n') for w in line.strip().split('    ')[0].split()]
    assert all(vars(getattr(xmodal, w))['__name__'] for w in named)
    there = {m.name for m in pkgutil.iter_modules(xmodal.__path__) if m.name[0] != '_'}
    assert sorted(named) == sorted(there)


def test_version_is_that_of_the_settings():
    assert f'version = {xmodal.__version__}\n' in (ROOT / 'settings.ini').read_text()


def test_repr_of_a_job_shows_what_was_chosen():
    assert repr(xmodal.Job()) == 'Job()'
    assert repr(xmodal.Job(dataset='ixi', steps=5)) == "Job(dataset='ixi', steps=5)"


def test_repr_of_a_recipe():
    assert 'steps=5' in repr(xmodal.Recipe(steps=5)) and len(repr(xmodal.Recipe())) < 300


def test_repr_of_a_translator():
    tr = xmodal.Translator.from_pretrained(ROOT / 'tests' / 'goldens' / 'model', 'cpu')
    text = repr(tr)
    about = tr.data
    words = ('Translator(', 'goldens/model', tr.model.method, about.source, 'cpu')
    assert all(w in text for w in (*words, about.target)) and '\n' not in text, text


def test_an_unknown_method_is_refused_in_its_own_words():
    "Not as an option that does not fit."
    from xmodal.core import InputError
    from xmodal.methods import make_bridge

    with pytest.raises(InputError, match="^unknown method 'cdtsd': did you mean 'cdtsde'?"):
        make_bridge('cdtsd', channels=1)
    with pytest.raises(InputError, match="^unknown method 'magic': use one of cdtsde, "):
        make_bridge('magic', channels=1)


NEAR = {
    'train --method cdtsd': "unknown method 'cdtsd': did you mean 'cdtsde'? If not, use one of ",
    'train --dataset bid': "unknown data set 'bid': did you mean 'bids'? If not, use one of ",
    'train --net unet25': "unknown network 'unet25': did you mean 'unet256'? If not, use one of ",
    'train --tau markv': "unknown noise rule tau = 'markv': did you mean 'markov'? If not, ",
    'train --text bth': "unknown conditioning text = 'bth': did you mean 'both'? If not, ",
    'train --method cdtsde --pred ep': "unknown prediction type 'ep': did you mean 'eps'? If not,",
    'data info phantm': "unknown data set 'phantm': did you mean 'phantom'? If not, use one of ",
    'data check bid': "unknown data set 'bid': did you mean 'bids'? If not, use one of ",
    'evaluate pred truth --window percentil': "unknown window rule 'percentil': did you mean 'percenti",
    'evaluate pred truth --protocol sythrad': "unknown protocol 'sythrad': did you mean 'synthrad'? ",
}


@pytest.mark.parametrize('words', NEAR)
def test_a_misspelt_value_is_guessed_too(words, tmp_path, monkeypatch):
    "Whatever is chosen from a list: the nearest word, and then all there are."
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for k, folder in enumerate(('pred', 'truth')):
        (tmp_path / folder).mkdir()
        pixels = np.arange(256, dtype=np.uint8).reshape(16, 16) // (k + 1)
        Image.fromarray(pixels).save(tmp_path / folder / 'a.png')
    code, _, err = said(main, *words.split())
    assert code in (1, 2) and NEAR[words] in err, err
    assert err.count('\n') == 1, err


SOLID = {  # what a network of volumes does not go with, and the remedy
    '--method cdtsde': 'the field of method cdtsde is one of pictures',
    '--method pix2pix': 'use a method without critics',
    '--method bbdm --text both': 'cannot be steered by prompts; use unet',
    '--method bbdm --backbone latent': 'leave it empty with backbone latent',
    '--method bbdm --context 2': 'leave context out, depth says how many',
    '--method bbdm --plane all': 'leave plane all out',
    '--method bbdm --source T1w,FLAIR': 'sees one source',
    '--method bbdm --checkpointing': 'checkpointing is for the networks unet and latent',
    '--method bbdm --depth 1': 'depth must be 0 or 2 or more',
    '--method bbdm --depth -1': 'depth must be 0 or more',
    '--method bbdm --net unet --depth 8': 'depth is for net unet3d',
}


@pytest.mark.parametrize('words', SOLID)
def test_a_network_of_volumes_is_refused_before_data_are_looked_for(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = f'train --net unet3d --ch 8 --dataset bids --root gone {words}'
    code, _, err = said(main, *asked.split())
    assert code in (1, 2) and SOLID[words] in err and err.count('\n') == 1, err


# --- commands that people copy


def shown_commands():
    "The lines of README and guide that begin with `xmodal`, as words."
    root = Path(__file__).resolve().parents[1]
    texts = [(root / 'README.md').read_text(encoding='utf-8')]
    for path in sorted((root / 'nbs/guide').glob('*.ipynb')):
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        texts += [''.join(c['source']) for c in cells if c['cell_type'] == 'markdown']
    joined = [re.sub(r'\\\n *', '', text) for text in texts]  # a line that goes on in the next
    lines = [line for text in joined for line in text.splitlines()]
    found = [re.match(r'(?:\.venv/bin/)?xmodal ([a-z].*)', line) for line in lines]
    words = [shlex.split(m[1], comments=True) for m in found if m]
    return [' '.join(map(shlex.quote, w)) for w in words if w[0] in commands and '|' not in w]


@pytest.mark.parametrize('line', dict.fromkeys(shown_commands()))
def test_a_shown_command_can_be_typed(line):
    words = shlex.split(re.sub(r'--config \S+|--help', '', line))
    assert make_parser().parse_args(words).command == words[0]


def test_training_is_shown_by_command_and_notebook():
    text = (Path(__file__).resolve().parents[1] / 'README.md').read_text(encoding='utf-8')
    train = text[text.index('## Train') : text.index('## What was found')]
    assert '\nxmodal train --' in train and '\npapermill nbs/train.ipynb' in train


def test_a_note_is_not_glued_to_a_progress_bar():
    from tqdm.auto import tqdm

    assert note_line('changed', UserWarning, 'file', 1, line='x') == 'xmodal: note: changed\n'
    for unseen in (True, False):
        with tqdm(total=2, disable=unseen, file=io.StringIO()):
            line = note_line('changed', UserWarning, 'file', 1)
        assert line == '\n' * (not unseen) + 'xmodal: note: changed\n'
    assert note_line('changed') == 'xmodal: note: changed\n'
