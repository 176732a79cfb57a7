"""A PyTorchJob without a fault, as text, to make faults in."""

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
    """The line in which a text first has this part."""
    return text[: text.index(part)].count("\n") + 1
