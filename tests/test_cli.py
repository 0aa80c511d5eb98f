"""The command line as a shell sees it."""

import json
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import still
from still.cli import app
from still.cli_shared import input_names, present_inputs
from still.errors import DatasetError, StillError
from typer.testing import CliRunner
from weights_toys import write_base

COMMANDS = ("demo", "pull", "compile", "report", "run", "export", "explain", "ledger")
PROGRAM = """
    import still
    from typing import Literal

    class Sort(still.Signature):
        '''Is the mood of the text good or bad?'''
        text: str = still.Input()
        mood: Literal["good", "bad"] = still.Output()

    def sorter():
        return still.Predict(Sort)
"""


def shell(*arguments, cwd=None, check=0):
    done = subprocess.run([sys.executable, "-m", "still.cli", *map(str, arguments)], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == check, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A program compiled from the command line, with its folder."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "program.py").write_text(textwrap.dedent(PROGRAM))
    moods = [("what a lovely day", "good"), ("this is awful", "bad"), ("I love it", "good"), ("terrible, really", "bad")]
    lines = [json.dumps({"text": f"{text} {i}", "mood": mood}) for i in range(5) for text, mood in moods]
    (folder / "data.jsonl").write_text("\n".join(lines))
    done = shell("compile", "program.py:sorter", "data.jsonl", "-o", "mood.still", cwd=folder)
    return folder, done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"still {command}" in result.output


def test_version_of_the_help_lists_every_command():
    result = CliRunner().invoke(app, ["--help"])
    assert all(command in result.output for command in COMMANDS)


@pytest.mark.model
def test_pull_fetches_embedders_too():
    result = CliRunner().invoke(app, ["pull", "minilm"])
    assert result.exit_code == 0
    assert result.output.startswith("minilm: all-MiniLM-L6-v2, 384 dimensions")


@pytest.mark.model
def test_compile_prints_the_report_and_saves(compiled):
    folder, output = compiled
    assert "baseline" in output
    assert "winner:" in output
    assert "saved mood.still" in output
    assert (folder / "mood.still" / "SHA256SUMS").is_file()


def test_compile_at_o3_trains(tmp_path):
    """A random model of two layers, and too few steps for it to win: the report says what was tried, and what stays runs."""
    base = write_base(tmp_path / "base", max_position_embeddings=2048)
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    lines = [json.dumps({"text": f"{i}", "mood": "good" if i % 10 < 5 else "bad"}) for i in range(20)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    options = ("-o", "mood.still", "--level", "O3", "--model", base, "--embedder", "words")
    report = " ".join(shell("compile", "program.py:sorter", "data.jsonl", *options, cwd=tmp_path).stdout.split())
    assert "distil: 12 rows, 6 steps" in report
    assert list((tmp_path / ".still" / "training").glob("*/best/adapter_model.safetensors"))
    answered = shell("run", "mood.still", '{"text": "3"}', cwd=tmp_path)
    assert json.loads(answered.stdout)["mood"] in ("good", "bad")


@pytest.mark.model
def test_run_answers_one_json_line_per_input(compiled):
    folder, _ = compiled
    one = shell("run", "mood.still", '{"text": "so good"}', cwd=folder)
    assert json.loads(one.stdout)["mood"] in ("good", "bad")
    many = shell("run", "mood.still", "data.jsonl", cwd=folder)
    assert len([json.loads(line) for line in many.stdout.splitlines()]) == 20


@pytest.mark.model
def test_explain_shows_the_prompt_of_program_and_artifact(compiled):
    folder, _ = compiled
    artifact = shell("explain", "mood.still", cwd=folder).stdout
    assert "one of: good, bad" in artifact
    assert "compiled for smollm2-135m" in artifact
    program = shell("explain", "program.py:sorter", cwd=folder).stdout
    assert "Is the mood of the text good or bad?" in program


@pytest.mark.model
@pytest.mark.parametrize("what", ["mood.still", "program.py:sorter"])
def test_explain_shows_what_a_call_costs(compiled, what):
    folder, _ = compiled
    lines = shell("explain", what, "--input", '{"text": "so good"}', cwd=folder).stdout.splitlines()
    (head,) = [i for i, line in enumerate(lines) if line.split()[:2] == ["output", "text"]]
    assert "tokens" in lines[head - 1]
    field, mood, decoded, forced, scored, *_ = lines[head + 1].split()
    assert (field, mood in ("good", "bad")) == ("mood", True)
    assert int(decoded) + int(forced) + int(scored) > 0


@pytest.mark.model
def test_ledger_answers_ready_queries_and_sql(compiled):
    folder, _ = compiled
    assert "cost" in shell("ledger", cwd=folder).stdout
    assert "finished" in shell("ledger", "runs", cwd=folder).stdout
    assert "n\n" in shell("ledger", "SELECT count(*) AS n FROM runs", cwd=folder).stdout
    assert "read-only" in shell("ledger", "DELETE FROM runs", cwd=folder, check=1).stderr


@pytest.mark.model
def test_ctrl_c_says_how_to_go_on(compiled):
    folder, _ = compiled
    command = [sys.executable, "-m", "still.cli", "compile", "program.py:sorter", "data.jsonl", "-o", "b.still"]
    process = subprocess.Popen(
        [*command, "--seed", "3", "--ledger", "other.duckdb"], cwd=folder, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    deadline = time.time() + 60
    while not (folder / "other.duckdb").exists() and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "in the ledger" in errors
    with still.Ledger(folder / "other.duckdb") as ledger:
        assert [run.status for run in ledger.runs()] in ([], ["interrupted"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nothing.still", "{}"), "not an artifact"),
        (("compile", "nothing.py:x", "data.csv", "-o", "x"), "there is no file 'nothing.py'"),
        (("ledger", "runs"), "there is no ledger"),
        (("pull", "no-such-model"), "no-such-model"),
        (("explain", "nothing"), "not an artifact"),
    ],
)
def test_mistakes_are_one_line_and_status_1(tmp_path, arguments, message):
    done = shell(*arguments, cwd=tmp_path, check=1)
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_a_file_without_the_programs_inputs_is_refused(tmp_path):
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "data.csv").write_text("body,mood\nhello,good\n")
    done = shell("compile", "program.py:sorter", "data.csv", "-o", "x", cwd=tmp_path, check=1)
    assert "none is an input of the program" in done.stderr


class Steps(still.Module):
    """Two steps, of which the first makes what the second is given."""

    def __init__(self):
        super().__init__()
        self.sort = still.Predict("message -> topic")
        self.answer = still.ChainOfThought("topic -> reply")


class Plain(Steps):
    def forward(self, message):
        return self.answer(topic=self.sort(message=message).topic)


class Renaming(Steps):
    def forward(self, text, *, language="en"):
        return self.answer(topic=self.sort(message=f"{language}: {text}").topic)


class Waiting(Steps):
    async def aforward(self, text):
        return await self.answer.acall(topic=(await self.sort.acall(message=text)).topic)


class Anything(Steps):
    def forward(self, text, **more):
        return self.answer(**{"topic": text, **more})


@pytest.mark.parametrize(
    ("program", "names"),
    [
        (still.Predict("message, topic -> reply"), {"message", "topic"}),
        (still.ChainOfThought("message, topic -> reply"), {"message", "topic"}),
        (Plain(), {"message"}),
        (Renaming(), {"text", "language"}),
        (Waiting(), {"text"}),
        (Anything(), {"text", "message", "topic"}),
    ],
)
def test_inputs_are_what_a_call_takes(program, names):
    assert input_names(program) == names


def test_a_label_may_have_the_name_of_an_inner_input(tmp_path):
    """`topic` goes from step to step: as a column it is a label, which the program must not be given."""
    data = tmp_path / "data.csv"
    data.write_text("message,topic,reply\nhello,greeting,good day\n")
    assert present_inputs(data, input_names(Plain())) == ["message"]
    with pytest.raises(DatasetError, match=r"none is an input of the program: \['language', 'text'\]"):
        present_inputs(data, input_names(Renaming()))


def test_the_artifact_is_saved_before_its_report_is_printed(tmp_path, monkeypatch):
    """What was compiled must not be lost to a report that cannot be shown."""
    done = []

    class Report:
        def __str__(self):
            done.append("shown")
            return "[/INST] [urgent] :key:"

    class Result:
        report = Report()

        def save(self, path):
            done.append("saved")
            return path

    monkeypatch.setattr("still.compiler.compile.compile", lambda *_, **__: Result())
    monkeypatch.setattr(sys, "path", list(sys.path))  # the program's folder is put there
    (tmp_path / "moods.py").write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "data.csv").write_text("text,mood\nhello,good\n")
    arguments = (f"{tmp_path}/moods.py:sorter", f"{tmp_path}/data.csv", "-o", f"{tmp_path}/mood.still")
    shown = CliRunner().invoke(app, ["compile", *arguments])
    assert shown.exit_code == 0, shown.output
    assert done == ["saved", "shown"]
    assert "[/INST] [urgent] :key:" in shown.output


@pytest.mark.parametrize(
    ("teacher", "says"),
    [("lms.py:big", "told: openai/big"), ("lms.py:size", "teacher=3: give a still.LM"), ("lms.py:no", "defines no 'no'")],
)
def test_a_teacher_is_named_as_programs_are(tmp_path, monkeypatch, teacher, says):
    from still.compiler import job

    def run(self):
        raise StillError(f"told: {self.task.proposer.model}")

    monkeypatch.setattr(job.Job, "run", run)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the folder of what is named is put there
    (tmp_path / "moods.py").write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "lms.py").write_text("import dspy\nbig = dspy.LM('openai/big', api_key='-')\nsize = 3\n")
    (tmp_path / "data.csv").write_text("text,mood\nhello,good\nno,bad\n")
    arguments = (f"{tmp_path}/moods.py:sorter", f"{tmp_path}/data.csv", "-o", f"{tmp_path}/mood.still")
    options = ("--teacher", f"{tmp_path}/{teacher}", "--ledger", f"{tmp_path}/l.duckdb")
    done = CliRunner().invoke(app, ["compile", *arguments, *options])
    assert says in str(done.exception)


def test_texts_of_the_ledger_are_printed_as_they_are(tmp_path):
    still.Ledger(tmp_path / "ledger.duckdb").close()
    query = "SELECT '[/INST] [urgent] :key:' AS said"
    shown = CliRunner().invoke(app, ["ledger", query, "--path", str(tmp_path / "ledger.duckdb")])
    assert shown.exit_code == 0, shown.output
    assert "[/INST] [urgent] :key:" in shown.output


def test_an_embedder_that_is_not_known_is_refused(tmp_path):
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "data.csv").write_text("text,mood\nhello,good\n")
    done = shell("compile", "program.py:sorter", "data.csv", "-o", "x", "--embedder", "best", cwd=tmp_path, check=1)
    assert "encoder model 'best' is not known: give 'minilm', a folder" in " ".join(done.stderr.split())


@pytest.mark.model
def test_the_demo_on_a_few_rows_prints_what_it_promises(tmp_path, monkeypatch, capsys):
    """The whole demo, on 40 of its messages: baseline, compiled, artifact, and answers from a second process."""
    from still.programs import helpdesk

    small = tmp_path / "small.csv"
    rows = still.Dataset.read(helpdesk.DATA, inputs=["message"]).sample(40, seed=1)
    small.write_text("message,team,urgency,order_id\n")
    with small.open("a", newline="") as file:
        import csv

        csv.writer(file).writerows([e.message, e.team, e.urgency, e.order_id or ""] for e in rows)
    monkeypatch.setattr(helpdesk, "DATA", small)
    summary = helpdesk.run_demo(tmp_path / "out")
    assert set(summary) == {"baseline", "compiled", "test_size", "seconds", "artifact"}
    assert set(summary["baseline"]) == set(summary["compiled"]) == {"team", "urgency", "order_id"}
    assert summary["test_size"] == 12
    printed = capsys.readouterr().out
    assert printed.count('"team"') == 3, "three new messages are answered"
