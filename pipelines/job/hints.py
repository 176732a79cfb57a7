"""What to do about a failure, from how containers ended, what Kubernetes said, and the last lines of the ranks."""

import re
from collections.abc import Iterable

_HINTS = (
    (r"OOMKilled|exit code 137\b",
     "out of memory: give more with --memory, or train with a smaller --batch-size and more --accumulation-steps"),
    (r"CUDA out of memory|OutOfMemoryError",
     "the GPU is out of memory: a smaller --batch-size with more --accumulation-steps, a shorter --max-length, or --precision bf16"),
    (r"ImagePullBackOff|ErrImagePull|InvalidImageName|Failed to pull image",
     "the image cannot be pulled: check its name and tag, that the nodes reach the registry, and --image-pull-secrets"),
    (r"Insufficient|FailedScheduling|Unschedulable|didn't match|untolerated taint",
     "no node fits: ask for less (--gpus, --cpu, --memory, --nodes), allow more nodes (--node-selector, --tolerations), or free some"),
    (r"exceeded quota",
     "the namespace's quota is used up: ask for less, or have the quota raised"),
    (r"violates PodSecurity",
     "Pod Security refuses the pods: under `restricted` use --elastic true, whose pods get no init container"),
    (r"Preempt|preempted|Evicted|DeletionByTaintManager|EvictionByEvictionAPI|TerminationByKubelet|NodeLost|Shutdown",
     "pods were taken away (preempted or evicted): start again, training goes on from its last checkpoint; a --priority-class makes it rarer"),
    (r"(?i)nccl.*(timeout|timed out|abort|error)|Watchdog caught collective|ncclSystemError|ncclRemoteError",
     "the GPUs lost each other (NCCL): see which rank ended first; check that a network policy lets the pods of a job talk on all ports, and NCCL_SOCKET_IFNAME"),
    (r"(?i)gloo.*(timed? ?out|connect|closed)|Connection closed by peer|Connection reset by peer",
     "the processes lost each other: see which rank ended first; a network policy has to let the pods of a job talk on all ports"),
    (r"RendezvousConnectionError|RendezvousTimeoutError|Name or service not known|Temporary failure in name resolution",
     "the pods did not find each other: check DNS and that a network policy allows it between the pods of a job"),
    (r"bus error|Bus error|exit code 135\b|SIGBUS",
     "shared memory was too small: mount a memory-backed /dev/shm, as manifests/base does"),
    (r"Permission denied|Read-only file system|\[Errno (13|30)\]",
     "the volume cannot be written: it has to be writable for group 0, see fsGroup in manifests/base"),
    (r"No space left on device|\[Errno 28\]",
     "the volume is full: remove old runs, or make the claim larger"),
    (r"is no dataset folder|has no dataset\.json|was made with another tokenizer|unknown class|cannot be used",
     "the data is at fault: see the line above, mend it, and run preprocess again"),
    (r"was made with .* now it is",
     "the checkpoint was made with other settings: give them again, or start over with --resume never"),
    (r"FailedMount|FailedAttachVolume|Multi-Attach",
     "a volume cannot be mounted: a claim that is not ReadWriteMany serves the pods of one node only"),
    (r"CreateContainerConfigError|CreateContainerError|RunContainerError",
     "the container cannot be started: a secret or config map that it names may be missing, or the command is not in the image"),
)  # fmt: skip


def hints(said: Iterable[str]) -> list[str]:
    """What fits these words, in the order of the list above."""
    text = "\n".join(said)
    return [hint for pattern, hint in _HINTS if re.search(pattern, text)]
