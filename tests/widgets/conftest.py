"""Fixtures of annotation sessions."""

from __future__ import annotations

import pytest
from session_helpers import Clips

from sam2kit.models.checkpoints import load_model
from sam2kit.prompts.annotations import AnnotationStore
from sam2kit.widgets.prompt_session import PromptSession


@pytest.fixture(scope="module")
def model():
    return load_model("nano")[1]


@pytest.fixture
def session(model):
    return PromptSession(Clips(), 0, model)


@pytest.fixture
def store(tmp_path):
    store = AnnotationStore(tmp_path / "annotations")
    yield store
    store.close()


@pytest.fixture
def reopen(model, store):
    """Return a function that opens the video again as a new kernel would."""

    def open_again(i: int = 0, has_masks: bool = True) -> PromptSession:
        return PromptSession(
            Clips(has_masks), i, model, store=AnnotationStore(store.folder), model_name="nano"
        )

    return open_again
