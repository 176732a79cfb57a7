"""A PyTorchJob without a fault, as text to put faults into, and the model folder of a job."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from trainer.config import TrainConfig

GOOD = """\
apiVersion: kubeflow.org/v1
kind: PyTorchJob
metadata:
  name: news
  labels:
    kueue.x-k8s.io/queue-name: gpu
spec:
  nprocPerNode: "1"
  runPolicy:
    cleanPodPolicy: Running
    backoffLimit: 3
    ttlSecondsAfterFinished: 3600
  pytorchReplicaSpecs:
    Master:
      replicas: 1
      restartPolicy: OnFailure
      template:
        metadata:
          labels: {sidecar.istio.io/inject: "false"}
          annotations: {sidecar.istio.io/inject: "false"}
        spec:
          securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
          volumes:
            - {name: shm, emptyDir: {medium: Memory}}
            - {name: data, persistentVolumeClaim: {claimName: distrinews}}
          containers:
            - name: pytorch
              image: registry.example/trainer:0.1.0
              command: [torchrun, -m, trainer.train]
              env:
                - {name: OMP_NUM_THREADS, value: "2"}
              resources: {requests: {cpu: "2", memory: 4Gi}, limits: {memory: 4Gi}}
              securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
              volumeMounts:
                - {name: shm, mountPath: /dev/shm}
                - {name: data, mountPath: /data}
"""


def line_of(text: str, part: str) -> int:
    """Returns the line in which a text first has this part."""
    return text[: text.index(part)].count("\n") + 1


def leave_model(model: Path, train: TrainConfig, *, whole: bool = True) -> None:
    """Writes the model folder that the trainer would."""
    model.mkdir(exist_ok=True)
    save_file({"weight": torch.zeros(4)}, model / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (model / name).write_text("{}", encoding="utf-8")
    facts = {"settings": train.model_dump(mode="json"), "best_epoch": 1, "epochs": train.epochs}
    (model / "train_config.json").write_text(json.dumps(facts), encoding="utf-8")
    if not whole:
        os.truncate(model / "model.safetensors", 30)
