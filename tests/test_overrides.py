"""How trials are told apart."""

from jaxdl import config
from jaxdl.data.transforms import Flip, PadCrop
from jaxdl.optimizer import SGD, Adam, Cosine, StepDecay
from jaxdl.overrides import told_apart


def rows(*trials):
    return told_apart([{p: config.to_json(v) for p, v in trial.items()} for trial in trials])


def test_leaves_stay_as_they_are():
    trials = [{"seed": 0, "task.model.widths": (3, 4)}, {"seed": 1, "steps": 5}]
    assert rows(*trials) == [{"seed": 0, "task.model.widths": [3, 4]}, {"seed": 1, "steps": 5}]
    assert rows({"seed": 0}) == [{"seed": 0}]
    assert rows({}, {}) == [{}, {}]


def test_of_a_tree_its_class_and_what_differs_within_that_class():
    found = rows({"optimizer": SGD(momentum=0.9)}, {"optimizer": SGD(momentum=None)},
                 {"optimizer": Adam(learning_rate=Cosine(peak=0.1))},
                 {"optimizer": Adam(learning_rate=Cosine(peak=0.2))})
    assert found == [
        {"optimizer": "SGD", "optimizer.momentum": 0.9},
        {"optimizer": "SGD", "optimizer.momentum": None},
        {"optimizer": "Adam", "optimizer.learning_rate.peak": 0.1},
        {"optimizer": "Adam", "optimizer.learning_rate.peak": 0.2}]


def test_classes_within_classes():
    found = rows({"optimizer": SGD(learning_rate=Cosine(peak=0.1))},
                 {"optimizer": SGD(learning_rate=StepDecay(peak=0.3))},
                 {"optimizer": SGD(learning_rate=StepDecay(peak=0.3, at=(0.5,)))})
    assert found == [
        {"optimizer.learning_rate": "Cosine"},
        {"optimizer.learning_rate": "StepDecay", "optimizer.learning_rate.at": [0.5, 0.75]},
        {"optimizer.learning_rate": "StepDecay", "optimizer.learning_rate.at": [0.5]}]
    assert rows({"optimizer": SGD()}, {"optimizer": SGD(), "seed": 1}) == [
        {"optimizer": "SGD"}, {"optimizer": "SGD", "seed": 1}]


def test_tuples_of_trees():
    found = rows({"data.augment": ()}, {"data.augment": (Flip(),)},
                 {"data.augment": (PadCrop(pad=2), Flip())},
                 {"data.augment": (PadCrop(pad=4), Flip())})
    assert found == [
        {"data.augment": []}, {"data.augment": "(Flip,)"},
        {"data.augment": "(PadCrop, Flip)", "data.augment.0.pad": 2},
        {"data.augment": "(PadCrop, Flip)", "data.augment.0.pad": 4}]
