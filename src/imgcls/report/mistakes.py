"""Worst mistakes of a test: picks them, reads their pictures, and finds the evidence in them."""

import torch

from imgcls.data.batch import ImageDataset
from imgcls.report.figures import Mistake, as_picture, under_heat
from imgcls.report.heatmaps import grad_cam
from imgcls.report.test_report import Report, optional
from imgcls.tasks.classification import ImageClassifier

MISTAKES = 16  # are shown with their pictures


def worst_mistakes(report: Report, classifier: ImageClassifier, dataset: ImageDataset) -> list[Mistake]:
    """Returns the wrong predictions with the highest confidence, as far as they can be shown."""
    mistakes, images, classes = [], [], []
    wrong = report.predictions[~report.right()].nlargest(MISTAKES, "confidence")
    for name, target, prediction, confidence, index in wrong.itertuples(index=False, name=None):
        with optional(f"picture of {name}"):
            image = dataset.picture(index)
            mistakes.append(Mistake(as_picture(image), None, target, prediction, confidence, name))
            images.append(image)
            classes.append(classifier.spec.class_names.index(prediction))
    if mistakes:
        with optional("Grad-CAM"), torch.inference_mode(False):
            device = classifier.device
            batch = classifier.normalise(torch.stack(images).to(device))
            heats = grad_cam(classifier.network, batch, torch.tensor(classes, device=device)).cpu()
            for mistake, heat in zip(mistakes, heats, strict=True):
                mistake.evidence = under_heat(mistake.picture, heat)
    return mistakes
