"""Maps the top-level folders to one package, `spiritrt`, and builds its C++ extension."""

from glob import glob

from setuptools import find_packages, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

FOLDERS = {
    "spiritrt": "runtime",
    "spiritrt.kernels": "kernels",
    "spiritrt.bench": "bench",
    "spiritrt.training": "training",
    "spiritrt.evaluation": "evaluation",
    "spiritrt.weights": "models",
}

packages = []
for name, folder in FOLDERS.items():
    packages += [name] + [f"{name}.{sub}" for sub in find_packages(folder)]

setup(
    packages=packages,
    package_dir=FOLDERS,
    package_data={
        "spiritrt": ["py.typed", "*.pyi"],
        "spiritrt.duplex": ["recordings/*"],
        "spiritrt.kernels": ["configs/*.json"],
        "spiritrt.evaluation": ["sets/**/*"],
        "spiritrt.training": ["configs/*.yaml"],
        "spiritrt.weights": ["nano/*", "nano-expressive/*"],
    },
    # OpenMP: ATen's threads, which a stream spreads its slots over
    ext_modules=[
        CppExtension(
            "spiritrt._C",
            sorted(glob("csrc/*.cpp")),
            extra_compile_args=["-O3", "-g0", "-fopenmp"],
            extra_link_args=["-fopenmp"],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
