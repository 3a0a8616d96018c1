"""The terms of the code: one idea, one word. The lists of ruled-out words are beside the tests."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES if path != Path(__file__)]

# Whole names of modules, classes, functions, parameters, variables and attributes.
NAMES_RULED_OUT = frozenset(
    """
    ActingPolicy BEGINNING Begun BlockCache BuiltFolder BuiltSample BuiltSum ByteSentences
    CONDUCT CameraWriter Checked ChoiceConfig ChosenEpisodes CodeMaker CodeUse CodebookWatch
    ColourRanges Colours Conduct Contexts Course DatasetFacts Drawn DrawnPicture Draws Encoded
    Engaged EpisodeBuild EpisodeChoice EpisodeWork Expectation Extremes Facts Feed FileFacts
    FillsRoom FirstEpoch ForeignWeights FoundJudges FoundSource Grammar HeldOut HostCopy
    IdsCache ImageFacts ImagesKept Judges LaterKeys LecamMeans Lender Lens Lifted Loan
    LossShares MeanPicture Measured Membership Memory Misfit ModelTrial Moment Moved Mover
    Normalises NothingThere Notices Oddities OpenBlocks Origin Pace Page Parcel Pass PngFacts
    PoseTrack Predicted ProcessMark Quantised RankEnd RankResult Reading ReadsAhead Reduced
    Rejected Reports RoboticsKept Room RowDraws Shot Show SinkTrial StatisticsSum StepSums
    Sugar TellsOfFacts TokenSentences TrainedPolicy TrainedTokenizer Translated TrialConfig
    Trouble Typed Values Vocabulary _Ahead _Companions _Crew _Exchanged _Holder _Killed
    _Mortal _Onwards _PassedOn _Told _Transfer _again _as_said _fake _free_if_useless
    _leave_at_once _outlive_warnings _own_share _said _stranger _tell _tell_unless_left _tells
    _told _told_another ahead alone amounts broken_rules broken_schedule bytes_of can_draw
    check_kept check_needed check_origins choose choose_episodes claim claim_run code_maker
    code_use coming_actions coming_frames conduct consumed contradictions decisive drawn_again
    draws_pixels each_look each_once encoded_of ends enter_kept exact_float32 exchanging
    expand_beginning facts facts_of family_of fellows figures find_judges find_origin
    find_source find_weights first_again foreign forget found given growth held_out holds_only
    holds_something http_trouble is_built is_fake is_last_resort is_stdout_abandoned
    joined_ranks judge keep kept kept_shares known_index known_output known_result known_run
    lending lies_in lift lifting load_beginning load_trained loader_ended look_ahead look_at
    lost_picture make_sentences measuring mend_latest mend_run model_acting model_promises
    model_trial moved_versions moving name_in_words names_sink natural_sink needed_field
    network_trouble noticed noun oddities on_device on_ranks one one_voice open_code_maker
    open_from_end open_onwards open_part openable own_device own_files passing
    patience patience_s pauses pictured pieces pixels_of place places prepared read_facts
    read_facts_telling read_kept_tokenizer read_part read_sealed recall recalled
    refuse_missing_or_pointer refused remote_at remove_leftovers remove_strangers renamed room
    s3_trouble said sealed seen_frames seen_from_now settle settle_stdout settle_worker
    settled shots side_by_side sink_trial specialises spread stands_for sugar task_in_words
    tell timestamp_oddity told told_by_rank told_configuration turn union unset_needed waited
    wanted watch what whole_output whole_record without_chance without_effect write_sealed
    """.split()  # noqa: SIM905 - a list of words
)
# Parts of identifiers.
PARTS_RULED_OUT = re.compile(
    r"pictur|^_?refuse_|told|colour|normalis|recognis|quantis|tokenis|serialis|neighbour|grey", re.I
)
# At most 30.
EXCEPTIONS: dict[str, str] = {
    "amounts": "key of the result of preprocess",
    "keep": "option and key of curations on disk",
    "facts": "key of receipts on disk",
    "figures": "key of results of eval",
    "place": "key of findings on disk",
    "tell": "method of file objects",
    "moving": "key of segment_weights, as in `moving_psnr` of reports",
}
# Attributes and keyword arguments whose names are keys on disk, in reports or of published files.
KEYS_WITH_PICTURE = frozenset({"picture", "pictures", "codes_per_picture"})
# Prose of docstrings, comments and messages.
PROSE_RULED_OUT = re.compile(
    r"""\b(told|tells?|telling|pictures?|pictured|oddit(y|ies)|fellows?|strangers?|so\ many|goes\ on
    |go\ on|going\ on|went\ on|begins?\ anew|beg[au]n\ anew|comes?\ back|made\ good|made\ anew
    |what\ came\ of|comes?\ to\ nothing|mend(s|ed|ing)?|colou?red\ by|normalis\w*|colours?)\b""",
    re.I | re.X,
)
FIRST_WORDS_RULED_OUT = frozenset(["What", "How", "Which", "Whose", "Whether", "That", "Where"])


@cache
def _tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text())


@cache
def _names(name: str) -> list[tuple[str, int, bool]]:
    return list(_find_names(name))


def _find_names(name: str) -> Iterator[tuple[str, int, bool]]:
    """Each name that a file defines, its line, and True for attributes: these can be keys."""
    yield Path(name).stem.removeprefix("test_"), 0, False
    nodes = list(ast.walk(_tree(name)))
    fields = {
        (statement.target.id, statement.lineno)
        for node in nodes
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }
    for node in nodes:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, False
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno, False
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno, (node.id, node.lineno) in fields
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno, True


@cache
def _is_ruled_out(name: str, *, is_key: bool) -> bool:
    if name in EXCEPTIONS or (is_key and name in KEYS_WITH_PICTURE):
        return False
    return name in NAMES_RULED_OUT or PARTS_RULED_OUT.search(name) is not None


def _texts(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Docstrings and string literals with a space in them: messages, hints, help."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            # Documented attributes can be keys.
            yield re.sub(r"`[^`]*`|^ +\w+: ", "", node.value, flags=re.M), node.lineno


def test_identifiers_use_the_terms_of_the_glossary() -> None:
    assert [
        f"{name}:{line}: {identifier}"
        for name in NAMES
        for identifier, line, is_key in _names(name)
        if _is_ruled_out(identifier, is_key=is_key)
    ] == []


def test_exceptions_are_few_and_needed() -> None:
    used = {identifier for name in NAMES for identifier, *_ in _names(name)}
    assert len(EXCEPTIONS) <= 30
    assert EXCEPTIONS.keys() - used == set()


def test_docstrings_and_messages_use_the_terms_of_the_glossary() -> None:
    assert [
        f"{name}:{line}: {match.group()}"
        for name in NAMES
        if name.startswith("src/")
        for text, line in _texts(_tree(name))
        for match in PROSE_RULED_OUT.finditer(text)
    ] == []


def test_docstrings_open_with_a_noun_phrase_or_an_imperative() -> None:
    assert [
        f"{name}: {word}"
        for name in NAMES
        for word in _first_words(_tree(name))
        if word in FIRST_WORDS_RULED_OUT
    ] == []


def _first_words(tree: ast.Module) -> list[str]:
    """First words of the docstrings."""
    nodes = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [(ast.get_docstring(node) or " ").split(" ")[0].strip(".,:") for node in nodes]
