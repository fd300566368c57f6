"""Pictures of figures and charts."""

from xml.etree import ElementTree

from benchmarks.figures import Chart, Figure, Line, Panel
from benchmarks.pictures import of_chart, of_figures


def test_figures_without_ratio_give_no_picture() -> None:
    assert of_figures("inference", [Figure(what="CPU time", ours=[1.0])]) is None


def test_picture_of_figures_names_each_ratio() -> None:
    figure = Figure(what="chain", over="stock", ours=[1.0, 2.0], base=[3.0, 3.0], at_most=1.5)
    svg = of_figures("engine", [figure])
    assert svg is not None
    ElementTree.fromstring(svg)
    assert "chain" in svg
    assert "compared with stock" in svg


def test_chart_has_labels_of_panels_and_lines() -> None:
    line = Line(label="load 0.5", x=[1, 10], y=[2, 3])
    panel = Panel(title="Rate", x_label="workers", y_label="per second", lines=[line], log_y=True)
    svg = of_chart(Chart(name="curve", title="Curve", panels=[panel]))
    ElementTree.fromstring(svg)
    assert all(text in svg for text in ("Curve", "Rate", "workers", "per second", "load 0.5"))
