"""README's tables are what the results files give, and nothing else."""

import json

import pytest

from experiments import common, tables


def test_readme_is_up_to_date():
    tables.main(tables.TableOptions(check=True))


def test_every_table_has_its_results_and_every_result_says_where_it_comes_from():
    text = tables.README.read_text()
    for name in (match.group(2) for match in tables.BLOCK.finditer(text)):
        results = common.load(name)
        assert {"command", "hardware", "versions", "revision", "options", "minutes"} <= set(results)
        assert "/" not in results["command"]


def test_a_figure_changed_by_hand_is_found(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(tables.README.read_text().replace("±", "+-", 1))
    with pytest.raises(SystemExit, match="is not what experiments/results give"):
        tables.main(tables.TableOptions(check=True, readme=readme))
    tables.main(tables.TableOptions(readme=readme))
    assert readme.read_text() == tables.README.read_text()


def test_unknown_and_missing_tables(tmp_path):
    with pytest.raises(SystemExit, match="unknown table 'nonsense'; known: "):
        tables.rendered("<!-- table nonsense -->\n<!-- end -->")
    block = "<!-- table quickstart -->\n<!-- end -->"
    assert "no results yet: `quickstart.json`" in tables.rendered(block, tmp_path)


def test_results_are_saved_whole_or_not_at_all(tmp_path):
    options = common.Options(out=tmp_path)
    path = common.save("test", options, 0.0, value=[1.0])
    with pytest.raises(TypeError):
        common.save("test", options, 0.0, value=object)
    assert json.loads(path.read_text())["value"] == [1.0]
    assert list(tmp_path.iterdir()) == [path]


def test_commands_name_no_folder():
    given = ["--data-dir", "data", "--runs", "/a/b", "--seed", "1", "--out=/c"]
    assert common._without_paths(given) == ["--seed", "1"]
    assert common._without_paths(["--runs", "300", "--runs=/x"]) == ["--runs", "300"]
    assert common._without_paths([]) == []
