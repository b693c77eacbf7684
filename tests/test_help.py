"""help() of what people call: every argument with its meaning, every option that is passed on with
its name, and nothing that breaks where the source cannot be read.
"""

import ast, inspect, re, subprocess, sys, zipfile
from pathlib import Path

import pytest

import xmodal
from xmodal import bridge, denoise, methods, mixing, sample, solvers
from xmodal.data.check import found_records
from xmodal.evaluation.cohort import evaluate_cases
from xmodal.evaluation.protocols import evaluate, side_by_side
from xmodal.explain import explained, gathered
from xmodal.folders import translate_paths
from xmodal.metadata.record import Metadata, read_metadata
from xmodal.nets.build import UNet, build, sizes_for
from xmodal.train import run
from xmodal.training.adversarial import fit
from xmodal.training.loop import predict, train, validate
from xmodal.translate import SampleOptions, sampling

# what the front door names, and what stands behind its names
DOOR = [getattr(xmodal, name) for name in xmodal._homes if name != 'InputError']
CLASSES = [
    *(c for c in DOOR if inspect.isclass(c)),
    *(SampleOptions, UNet, Metadata, methods.Method),
    *(bridge.KeptCoefs, bridge.Bridge, sample.Estimator, sample.Solver, sample.OneStep),
    *(sample.Now, denoise.Network, denoise.Denoiser, denoise.Wrap, denoise.Clip, denoise.Stop),
    *(mixing.SpatialMix, mixing.ChannelMix, mixing.FixedMix, solvers.Sampler),
]
FUNCTIONS = [
    *(f for f in DOOR if not inspect.isclass(f)),
    *(sample.sample, bridge.diffuse, methods.get_method, methods.recipe_for, methods.make_grid),
    *(methods.calls, methods.steps_for, methods.cdtsde_bridge, methods.channel_bridge),
    *(methods.fixed_bridge, methods.released_bridge, methods.vp_bridge, methods.ve_bridge),
    *(translate_paths, evaluate, side_by_side, evaluate_cases, build, sizes_for, read_metadata),
    *(run, train, fit, predict, validate, sampling, found_records),
]


def methods_of(cls) -> list:
    "Public methods that a class defines itself or has from a class of ours."
    named = [n for n in dir(cls) if n == '__call__' or not n.startswith('_')]
    found = [inspect.getattr_static(cls, n) for n in named]
    found = [getattr(f, '__func__', f) for f in found]
    return [f for f in found if inspect.isfunction(f) and f.__module__.startswith('xmodal')]


def unexplained(thing) -> list:
    "Parameters without a line of meaning in the help."
    meanings = re.findall(r'^ +\**(\w+): \S', inspect.getdoc(thing) or '', re.M)
    names = set(inspect.signature(thing).parameters) - {'self', 'cls', 'args', 'kwargs'}
    return sorted(names - set(meanings))


def id_of(thing) -> str:
    return f'{thing.__module__}.{thing.__qualname__}'


@pytest.mark.parametrize('thing', [*CLASSES, *FUNCTIONS], ids=id_of)
def test_every_argument_is_explained(thing):
    assert unexplained(thing) == []
    if inspect.isclass(thing):
        assert {id_of(f): unexplained(f) for f in methods_of(thing) if unexplained(f)} == {}


def test_the_rule_sees_what_is_missing():
    def bare(
        x,  # a number
        y=0,
    ):
        "Adds."

    assert unexplained(bare) == ['x', 'y'] and unexplained(explained(bare)) == ['y']


def test_options_that_are_passed_on_have_names():
    run_takes = inspect.signature(xmodal.Translator.run).parameters
    assert {'steps', 'seed', 'tau', 'batch', 'samples', 'eta', 'order', 'clip'} <= set(run_takes)
    assert run_takes['batch'].default == 8
    every = {k for m in methods.methods.values() for k in methods.known_options(m)}
    every |= {k for row in solvers.samplers.values() for k in row.options}
    assert every - {'twin'} == set(methods.draw_options)


def test_options_of_bridges_are_those_they_take():
    for name, parts in methods.bridge_parts.items():
        for option in gathered({name: parts}, leave_out=('channels', 'mix', 'kind', 'n')):
            takes = [
                inspect.signature(p) for p in (parts if isinstance(parts, tuple) else (parts,))
            ]
            default = next(s.parameters[option].default for s in takes if option in s.parameters)
            methods.make_bridge(name, 1, **{option: default})


def test_a_package_without_readable_source_works(tmp_path):
    "Explained from a zip archive, left alone where only compiled code is there."
    source = inspect.getsource(sys.modules['xmodal.explain'])
    made = (
        'from explain import explained\n@explained\ndef f(\n    x,  # a number\n):\n    "Says."\n'
    )
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as z:
        z.writestr('explain.py', source)
        z.writestr('made.py', made)
    ask = 'import sys; sys.path.insert(0, sys.argv[1]); import made; print(repr(made.f.__doc__))'
    words = [sys.executable, '-c', ask]
    done = subprocess.run([*words, tmp_path / 'a.zip'], capture_output=True, text=True)
    assert 'x: a number' in done.stdout, done.stderr
    exec(
        compile(made.replace('from explain', 'from xmodal.explain'), 'nowhere.py', 'exec'),
        space := {},
    )
    assert space['f'].__doc__ == 'Says.'


# takes any name: the caller's tensors, columns, forms or attributes; or hands on what is named in its comment
FREE = {'check_same_shape', 'table', 'add', 'variant', 'of', 'forward', '__call__', 'tag'}


def bare_options(source) -> list:
    "Public functions that end in **options and do not say by a decorator whose these are."
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.args.kwarg:
            if node.name.startswith('_') and node.name != '__call__':
                continue
            said = any('passes_on' in ast.unparse(d) for d in node.decorator_list)
            if not said and node.name not in FREE:
                found.append(node.name)
    return found


def test_no_options_without_names():
    # in solvers.py the table of samplers says it, after the functions
    paths = [p for p in Path(xmodal.__path__[0]).rglob('*.py') if p.name != 'solvers.py']
    public = {p.name: bare_options(p.read_text(encoding='utf-8')) for p in paths}
    assert {k: v for k, v in public.items() if v} == {}
    assert bare_options('def f(x, **kw): ...') == ['f']
    assert bare_options('@passes_on(g)\ndef f(x, **kw): ...') == []
