"Metadata and prompts for any input: what is said is understood, and nothing but InputError is raised."

from dataclasses import asdict

from hypothesis import given, settings, strategies as st

from xmodal.core import InputError
from xmodal.metadata.encoder import RecordEncoder
from xmodal.metadata.prompt import describe, mask_prompt, parse_prompt
from xmodal.metadata.record import (
    KEY_FIELDS,
    keys,
    limits,
    mask_record,
    Metadata,
    names,
    read_metadata,
)

words = (
    'Philips GE United Imaging scanner image of the by MRI CT T 3 TR 100 ms sequence echo planar'
    ' recovery contrast agent without female years old flip angle degrees [MASK] weighted none T2'
    ' T1-weighted FLAIR harbour'.split()
)
phrase = st.lists(st.sampled_from(words), min_size=1, max_size=4).map(' '.join)
value = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10**6),
    st.floats(),
    st.text(max_size=8),
    phrase,
    st.lists(st.one_of(st.floats(), st.text(max_size=3)), max_size=3),
    st.sampled_from(['n/a', '89+', '045Y', 'MR', 'SE\\IR', 'F', 0.1, 3]),
)


@settings(deadline=None, max_examples=300)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            **{n: st.floats(low, high) for n, (low, high, _) in limits.items()},
            'sex': st.sampled_from('FMO'),
            **{n: phrase for n in ('maker', 'model', 'sequence', 'contrast', 'modality', 'region')},
        },
    )
)
def test_what_is_said_is_understood(given_fields):
    """Free fields made of the template's own words: the prompt is refused, or it is read back as
    the same record.
    """
    try:
        text = describe(record := Metadata(**given_fields))
    except InputError as e:
        assert '\n' not in str(e)
        return
    back = parse_prompt(text)
    for n in names:
        a, b = getattr(record, n), getattr(back, n)
        if n not in limits or a is None:
            assert a == b
        else:
            assert abs(a - b) <= (0.5 if n == 'age' else 5.1e-4 * a)
    hidden = parse_prompt(mask_prompt(text))
    assert not any(getattr(hidden, n) for n in KEY_FIELDS) and describe(hidden) == describe(
        mask_record(record)
    )
    assert RecordEncoder().encode([record]).isfinite().all()


@settings(deadline=None, max_examples=500)
@given(
    st.dictionaries(
        st.sampled_from(
            [k for ks in keys.values() for k in ks.split('|')]
            + ['site', 'EchoTime', 'RepetitionTime', 'KVP', 'note']
        ),
        value,
        max_size=6,
    )
)
def test_any_dictionary_is_read_or_refused(meta):
    "Nonsense in a table ends in one line; what is accepted is stable."
    try:
        record = read_metadata(meta)
    except InputError as e:
        assert '\n' not in str(e)
        return
    assert Metadata(**asdict(record)) == record == read_metadata(asdict(record))


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.text(max_size=40), st.lists(phrase, max_size=4).map('; '.join)))
def test_any_text_is_read_or_refused(text):
    try:
        record = parse_prompt(text)
    except InputError:
        return
    assert isinstance(record, Metadata)
