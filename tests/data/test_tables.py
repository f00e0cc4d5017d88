"""Tables as people export them: columns, delimiters, encodings, spellings of paths, groups."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from conftest import Folder
from torchsnow.data import Columns, LoadedData, load_data, load_task_table, make_splits, split_table
from torchsnow.errors import DataError


@pytest.fixture
def photos(image_folder: Folder) -> Path:
    """The folder p of twelve pictures, of which those with even numbers are a, the others b."""
    return image_folder({"p": 12}).parent / "pets"


def rows(*columns: object, between: str = ",") -> str:
    """Twelve rows of path, label and further cells: a function of the number, or a text."""
    lines = []
    for n in range(12):
        further = [str(column(n)) if callable(column) else str(column) for column in columns]
        lines.append(between.join([f"p/img{n}.png", "ab"[n % 2], *further]))
    return "\n".join(lines) + "\n"


def load(photos: Path, content: str | bytes, name: str = "t.csv", **how: object) -> LoadedData:
    table = photos / name
    table.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_data(table, **how)  # type: ignore[arg-type]


def sizes(data: LoadedData) -> dict[str, int]:
    return {name: len(examples) for name, examples in data.splits.items()}


def three(n: int) -> str:
    return ("train", "train", "val", "val", "test", "test")[n % 6]


THREE = {"train": 4, "val": 4, "test": 4}


@pytest.mark.parametrize("header", ["split", "Split", "SPLIT"])
def test_a_split_in_any_case_is_used_without_a_word(photos: Path, header: str) -> None:
    data = load(photos, f"Path,LABEL,{header}\n" + rows(three))
    assert (sizes(data), data.notes) == (THREE, ())


@pytest.mark.parametrize("header", ["set", "Subset", "partition", "phase", "usage", "group", "anything"])
def test_a_column_that_holds_splits_is_used_and_named(photos: Path, header: str) -> None:
    data = load(photos, f"path,label,{header}\n" + rows(three))
    assert sizes(data) == THREE
    assert data.notes == (f"the column {header!r} of {photos / 't.csv'} is used as the split",)


def test_words_for_splits_in_a_column(photos: Path) -> None:
    words = ("Training", "TRAINING", "dev", "dev", "holdout", "holdout")
    assert sizes(load(photos, "path,label,split\n" + rows(lambda n: words[n % 6]))) == THREE


def test_a_likely_column_with_other_words_too_is_refused(photos: Path) -> None:
    with pytest.raises(DataError, match=r"row 13: unknown split 'unused' in the column 'set'"):
        load(photos, "path,label,set\n" + rows(lambda n: "unused" if n == 11 else three(n)))


def test_two_columns_of_splits_are_a_question(photos: Path) -> None:
    text = "path,label,set,usage\n" + rows(three, lambda n: "train" if n < 8 else "test")
    with pytest.raises(DataError, match=r"several columns of splits \(set, usage\): say which one with --split-column"):
        load(photos, text)
    assert sizes(load(photos, text, columns=Columns(split="usage"))) == {"train": 8, "test": 4}


def test_columns_that_are_not_used_are_named(photos: Path) -> None:
    data = load(photos, "path,label,weight,patient\n" + rows(1.5, lambda n: n // 4))
    unused, group = data.notes
    assert unused == f"not used: 2 columns of {photos / 't.csv'}: 'weight', 'patient'"
    assert "--group-column patient" in group


@pytest.mark.parametrize(
    ("header", "quoted"), [("patient", "patient"), ("Patient ID", "'Patient ID'"), ("lesion_id", "lesion_id")]
)
def test_a_likely_group_is_named_as_it_is_to_be_given(photos: Path, header: str, quoted: str) -> None:
    note = load(photos, f"path,label,{header}\n" + rows(lambda n: n // 4)).notes[-1]
    assert note.endswith(f"--group-column {quoted}")


@pytest.mark.parametrize(
    ("header", "option"),
    [
        ("is_train", "use it by --split-column is_train"),
        ("Test", "use it by --split-column Test"),
        ("isTest", "use it by --split-column isTest"),
        ("fold", "in one split by --group-column fold"),
        ("data split", "in one split by --group-column 'data split'"),
    ],
)
def test_a_column_that_sounds_like_a_split_is_named(photos: Path, header: str, option: str) -> None:
    text = f"path,label,{header}\n" + rows(lambda n: n % 2)
    note = load(photos, text).notes[-1]
    assert note.startswith(f"the column {header!r} sounds like a split and is not used")
    assert note.endswith(option)
    (photos / "t.csv").write_text(text.replace("label", "first"))
    if header not in ("isTest", "data split", "Test"):  # which are no names of tasks
        assert load_task_table(photos / "t.csv").notes == (note,)


@pytest.mark.parametrize("other", ["", "unused"])
def test_a_column_that_holds_splits_among_others_is_named(photos: Path, other: str) -> None:
    note = load(photos, "path,label,purpose\n" + rows(lambda n: other if n == 5 else three(n))).notes[-1]
    assert note.startswith("the column 'purpose' sounds like a split and is not used as one")


@pytest.mark.parametrize("words", [("0", "1"), ("False", "True"), ("no", "YES"), ("0.0", "1.0"), ("f", "t")])
@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("is_test", {"train": 8, "test": 4}),
        ("Test", {"train": 8, "test": 4}),
        ("is_train", {"test": 8, "train": 4}),
        ("isTrainingSet", {"test": 8, "train": 4}),
        ("in_val", {"train": 8, "val": 4}),
    ],
)
def test_yes_and_no_are_splits_by_wish(
    photos: Path, words: tuple[str, str], header: str, expected: dict[str, int]
) -> None:
    text = f"path,label,{header}\n" + rows(lambda n: words[three(n) == "test"])
    assert sizes(load(photos, text, columns=Columns(split=header))) == expected


def test_folds_are_no_splits_and_can_be_groups(photos: Path) -> None:
    text = "path,label,fold\n" + rows(lambda n: n // 2)
    with pytest.raises(DataError, match=r"row 2: unknown split '0' in the column 'fold'"):
        load(photos, text, columns=Columns(split="fold"))
    splits = make_splits(load(photos, text, columns=Columns(group="fold")))
    assert all((splits.train, splits.val, splits.test))


@pytest.mark.parametrize("cell", ["", "nan", "NaN", "NULL", "<NA>", "#N/A"])
def test_rows_without_a_label_are_counted_and_refused(photos: Path, cell: str) -> None:
    text = "path,label\n" + rows().replace("img0.png,a", f"img0.png,{cell}").replace("img5.png,b", f"img5.png,{cell}")
    with pytest.raises(DataError, match=rf"no label in 2 rows \(row 2: {cell!r}, row 7: {cell!r}\): fill them in"):
        load(photos, text)
    text += "\n"
    (photos / "t.csv").write_text(text.replace("label", "first"))
    assert len(load_task_table(photos / "t.csv").tasks["first"].examples) == 10


@pytest.mark.parametrize("name", ["None", "NA", "n/a"])
def test_a_class_that_may_be_no_label_is_named_with_its_images(photos: Path, name: str) -> None:
    data = load(photos, "path,label\n" + rows().replace(",a", f",{name}"))
    (note,) = data.notes
    assert note.startswith(f"6 images have the class {name!r}, which programs write where no label is known")


def test_the_numbers_of_rows_are_no_column(photos: Path) -> None:
    assert load(photos, "path,label,\n" + rows(lambda n: n)).notes == ()


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("path,label,label", "has two columns 'label'"),
        ("path,label,Label", "has the columns label, Label: say which one with --label-column"),
        ("path,class,split", "--path-column and --label-column name other columns"),
    ],
)
def test_headers_that_leave_a_question(photos: Path, header: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load(photos, header + "\n" + rows("train"))


def test_columns_by_wish(photos: Path) -> None:
    text = "File,Class,Fold\n" + rows(three)
    data = load(photos, text, columns=Columns("file", "class", "fold"))
    assert (data.classes, sizes(data)) == (("a", "b"), THREE)
    with pytest.raises(DataError, match="has no column 'name'; it has File, Class, Fold"):
        load(photos, text, columns=Columns("name", "class"))


@pytest.mark.parametrize("between", [",", ";", "\t", "|"])
def test_delimiters(photos: Path, between: str) -> None:
    text = between.join(["path", "label", "split"]) + "\n" + rows(three, between=between)
    assert sizes(load(photos, text)) == THREE
    assert sizes(load(photos, text, name="t.tsv")) == THREE
    assert sizes(load(photos, f"sep={between}\n{text}")) == THREE
    assert sizes(load(photos, text.replace("\n", "\r\n"))) == THREE


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings(photos: Path, encoding: str) -> None:
    text = "path,label\n" + rows().replace(",a", ",猫")
    assert load(photos, text.encode(encoding)).classes == ("b", "猫")


def test_another_encoding_is_explained(photos: Path) -> None:
    with pytest.raises(DataError, match="save it as UTF-8"):
        load(photos, ("path,label\n" + rows().replace(",a", ",café")).encode("cp1252"))


def test_spellings_of_paths(photos: Path) -> None:
    plain = load(photos, "path,label\n" + rows())
    for text in (rows().replace("/", "\\"), rows().replace("p/", f"{photos}/p/"), rows().replace("p/", "./p/../p/")):
        data = load(photos, "path,label\n" + text)
        assert (data.fingerprint, data.splits) == (plain.fingerprint, plain.splits)


def test_a_composed_path_means_a_decomposed_file(photos: Path) -> None:
    (photos / "p" / "img0.png").rename(photos / "p" / unicodedata.normalize("NFD", "é.png"))
    data = load(photos, "path,label\n" + rows().replace("img0.png", unicodedata.normalize("NFC", "é.png")))
    assert len(data.examples) == 12


@pytest.mark.parametrize(
    ("before", "written"),
    [
        (".png", ""),
        (".png", ".PNG"),
        ("p/", "P:\\\\photos\\\\p\\\\"),
        ("p/", "pets/p/"),
        ("p/", "file:///home/p/"),
        ("p/", "/home/photos/p/"),
        ("p/", "../photos/p/"),
    ],
)
def test_paths_that_miss_a_file_are_explained(photos: Path, before: str, written: str) -> None:
    with pytest.raises(
        DataError, match=r"(names 12 files that do not exist|leaves the folder).*; is p/img0\.png meant\?$"
    ):
        load(photos, "path,label\n" + rows().replace(before, written))


@pytest.mark.parametrize("path", ["/etc/passwd", "../t", "/etc/host", "q/img0.png"])
def test_a_path_that_may_mean_nothing_here_gets_no_question(photos: Path, path: str) -> None:
    with pytest.raises(DataError) as refused:
        load(photos, "path,label\n" + rows().replace("p/img0.png", path))
    assert "meant" not in str(refused.value)


@pytest.mark.parametrize(
    ("row", "broken"),
    [("p/img3.png,b", 'p/img3.png,"b'), ("p/img3.png,b", '"p/img3.png,b'), ("img3.png,b,", 'img3.png,b,"as before')],
)
def test_quotes_that_are_not_closed_lose_no_rows(photos: Path, row: str, broken: str) -> None:
    header, further = ("path,label,note\n", [" "]) if row.endswith(",") else ("path,label\n", [])
    with pytest.raises(DataError, match=r"a cell with whole rows in it, which ends in row 13: close its quotes"):
        load(photos, header + rows(*further).replace(row, broken))


def test_a_cell_of_several_lines_is_one(photos: Path) -> None:
    assert sizes(load(photos, "path,label,note\n" + rows('"blurred,\nand dark"'))) == {"all": 12}


def test_a_cell_too_many_is_not_dropped(photos: Path) -> None:
    with pytest.raises(DataError, match=r"row 2 has more cells than the header; put what has a ',' in it into quotes"):
        load(photos, "path,label\n" + rows("more"))


def test_labels_that_look_alike_are_a_question(photos: Path) -> None:
    with pytest.raises(DataError, match="which look like one class"):
        load(
            photos, "path,label\n" + rows().replace("img0.png,a", "img0.png,A a").replace("img2.png,a", "img2.png,a a")
        )


def test_rows_for_the_test_alone_are_enough_to_measure_on(photos: Path) -> None:
    text = "path,label,split\n" + rows("test")
    with pytest.raises(DataError, match="no images to train on"):
        load(photos, text)
    data = load(photos, text, for_training=False)
    assert (data.classes, sizes(data)) == (("a", "b"), {"test": 12})


def test_links_out_of_the_folder_by_wish(photos: Path, tmp_path: Path) -> None:
    (photos / "p").rename(tmp_path / "elsewhere")
    (photos / "p").symlink_to(tmp_path / "elsewhere")
    text = "path,label\n" + rows()
    with pytest.raises(DataError, match=r"leaves the folder .*; --follow-links follows links out of it"):
        load(photos, text)
    assert sizes(load(photos, text, follow_links=True)) == {"all": 12}


def groups_of(data: LoadedData, part: tuple[object, ...]) -> set[str]:
    return {data.groups[example.path] for example in part}  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", [{}, {"columns": Columns(group="patient")}])
def test_groups_stay_in_one_split(photos: Path, how: dict[str, Columns]) -> None:
    header = "patient" if how else "group"
    data = load(photos, f"path,label,{header}\n" + rows(lambda n: f"g{n // 2}"), **how)
    assert [note[:40] for note in data.notes] == ([] if how else ["images of one value of the column 'group'"[:40]])
    drawn = set()
    for seed in range(4):
        splits = make_splits(data, seed=seed)
        parts = [groups_of(data, part) for part in (splits.train, splits.val, splits.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 6
        assert all(parts)
        assert make_splits(data, seed=seed) == splits
        drawn.add(frozenset(parts[2]))
    assert len(drawn) > 1


def test_validation_out_of_train_keeps_groups_too(photos: Path) -> None:
    text = "path,label,group,split\n" + rows(lambda n: f"g{n // 2}", lambda n: "test" if n < 4 else "train")
    data = load(photos, text)
    splits = make_splits(data)
    assert len(splits.test) == 4
    assert not groups_of(data, splits.train) & groups_of(data, splits.val)


def test_groups_in_several_splits_are_a_note(photos: Path) -> None:
    data = load(photos, "path,label,group,split\n" + rows("one", three))
    assert data.notes[1:] == ("images of 1 group are in several splits (one): accuracy is too good",)


def test_too_few_groups_are_refused(photos: Path) -> None:
    with pytest.raises(DataError, match="groups of t cannot be shared out"):
        make_splits(load(photos, "path,label,group\n" + rows("one")))
    with pytest.raises(DataError, match=r"no image of the class '.' is left to train on"):
        make_splits(load(photos, "path,label,group\n" + rows(lambda n: "ab"[n % 2])))


def test_a_table_of_tasks_has_the_same_columns(photos: Path) -> None:
    table = photos / "t.csv"
    table.write_text("Path;first;usage\n" + rows(three, between=";"))
    tasks = load_task_table(table)
    assert set(tasks.tasks) == {"first"}
    assert tasks.notes == (f"the column 'usage' of {table} is used as the split",)


def test_a_table_of_tasks_keeps_groups(photos: Path) -> None:
    table = photos / "t.csv"
    table.write_text("path,first,group\n" + rows(lambda n: f"g{n // 2}"))
    loaded = load_task_table(table)
    splits = split_table(loaded)["first"]
    groups = [groups_of(loaded.tasks["first"], part) for part in (splits.train, splits.val, splits.test)]
    assert sum(map(len, groups)) == 6
    assert all(groups)


@pytest.mark.parametrize("before", ["\n\n", "# from the camera, by hand\n\n", ",,\r\n", '"sep=,"\r\n'])
def test_lines_before_the_header_are_passed_over(photos: Path, before: str) -> None:
    assert sizes(load(photos, f"{before}path,label\n{rows()}")) == {"all": 12}
    number = before.count("\n") + 2
    with pytest.raises(DataError, match=rf"no label in 1 row \(row {number}: ''\)"):
        load(photos, f"{before}path,label\np/img0.png,\n")


def test_a_title_is_no_header(photos: Path) -> None:
    with pytest.raises(DataError, match=r"first line must be the header path,label .* not \['Pets of 2024'\]"):
        load(photos, f"Pets of 2024\npath,label\n{rows()}")


def test_rows_of_empty_cells_are_passed_over(photos: Path) -> None:
    assert sizes(load(photos, f"path,label,note\n,,\n{rows('x')} , ,\n")) == {"all": 12}


@pytest.mark.parametrize("columns", [Columns("path", "path"), Columns(group="label"), Columns(split="path")])
def test_a_column_has_one_meaning(photos: Path, columns: Columns) -> None:
    with pytest.raises(DataError, match=r"one column of .* is named for two things: .*path"):
        load(photos, "path,label\n" + rows(), columns=columns)


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(40), "path,label\n".encode("utf-32"), bytes(40)])
def test_a_file_that_is_no_text_is_refused(photos: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"t\.csv is no text: expected a table with commas"):
        load(photos, content)


def test_columns_of_a_folder_are_refused(photos: Path) -> None:
    with pytest.raises(DataError, match=r"columns are named \(class\), but .* is not a CSV file"):
        load_data(photos, columns=Columns(label="class"))
