# All images of proa, for `docker buildx bake`; `make images` and `make push` call it in the root.

variable "REGISTRY" {
  # Where the images belong, as in registry.example/team; empty: local names.
  default = ""
}

variable "TAG" {
  default = "0.1.0"
}

variable "PYTHON_IMAGE" {
  # null: what the Dockerfile says.
  default = null
}

variable "TORCH_INDEX" {
  # A package index with the wanted builds of torch: CPU builds save gigabytes.
  default = null
}

variable "TRITON_IMAGE" {
  # Triton's own image, for worker-gpu alone.
  default = null
}

function "image" {
  params = [name]
  result = ["${REGISTRY == "" ? "" : "${REGISTRY}/"}${name}:${TAG}"]
}

group "default" {
  targets = ["services", "worker-cpu"]
}

group "all" {
  targets = ["services", "worker-cpu", "worker-gpu"]
}

target "services" {
  context = "."
  dockerfile = "docker/services.Dockerfile"
  target = "services"
  platforms = ["linux/amd64"]
  args = {
    PYTHON_IMAGE = PYTHON_IMAGE
  }
  tags = image("proa-services")
}

target "worker-cpu" {
  context = "."
  dockerfile = "docker/worker.Dockerfile"
  target = "cpu"
  platforms = ["linux/amd64"]
  args = {
    PYTHON_IMAGE = PYTHON_IMAGE
    TORCH_INDEX = TORCH_INDEX
  }
  tags = image("proa-worker-cpu")
}

target "worker-gpu" {
  context = "."
  dockerfile = "docker/worker.Dockerfile"
  target = "gpu"
  platforms = ["linux/amd64"]
  args = {
    PYTHON_IMAGE = PYTHON_IMAGE
    TORCH_INDEX = TORCH_INDEX
    TRITON_IMAGE = TRITON_IMAGE
  }
  tags = image("proa-worker-gpu")
}
