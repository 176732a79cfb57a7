"""The server as tutorials write it, which ours is measured against: FastAPI and PyTorch, one text at a time, padded.

python -m tests.benchmarks.serving.reference_server MODEL_FOLDER --port 8081
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class OneText(BaseModel):
    text: str


class Texts(BaseModel):
    texts: list[str]


class Prediction(BaseModel):
    label: str
    confidence: float
    probabilities: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_folder", type=Path, help="what transformers loads: weights, configuration, tokenizer")
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--asynchronous", action="store_true", help="handlers are `async def` and block the event loop")
    args = parser.parse_args()
    app = create_app(load(args.model_folder), asynchronous=args.asynchronous)
    uvicorn.run(app, host="127.0.0.1", port=args.port)


def load(folder: Path) -> Callable[[str], Prediction]:
    """A function that classifies a text with the model of the folder."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    model.eval()

    def classify(text: str) -> Prediction:
        inputs = tokenizer(text, return_tensors="pt", padding="max_length", truncation=True, max_length=128)
        with torch.no_grad():
            logits = model(**inputs).logits
        probabilities = torch.softmax(logits, dim=-1)[0].tolist()
        named = {model.config.id2label[place]: probability for place, probability in enumerate(probabilities)}
        label = max(named, key=named.__getitem__)
        return Prediction(label=label, confidence=named[label], probabilities=named)

    return classify


def create_app(classify: Callable[[str], Prediction], *, asynchronous: bool) -> FastAPI:
    app = FastAPI()

    def predict(body: OneText) -> Prediction:
        return classify(body.text)

    def predict_batch(body: Texts) -> list[Prediction]:
        return [classify(text) for text in body.texts]

    def health() -> dict[str, str]:
        return {"status": "healthy"}

    async def predict_in_the_loop(body: OneText) -> Prediction:
        return predict(body)

    async def predict_batch_in_the_loop(body: Texts) -> list[Prediction]:
        return predict_batch(body)

    app.post("/predict")(predict_in_the_loop if asynchronous else predict)
    app.post("/predict/batch")(predict_batch_in_the_loop if asynchronous else predict_batch)
    app.get("/health")(health)
    return app


if __name__ == "__main__":
    main()
