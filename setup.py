"""Install from settings.ini, the project's one statement of its name, version and requirements."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(HERE / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
minors = range(*(int(settings[name].removeprefix("3.")) for name in ("min_python", "below_python")))

extras = {
    name: settings[f"{name}_requirements"].split()
    for name in ("spark", "stores", "int8", "explore", "umap", "docs", "dev")
}
extras["all"] = [requirement for extra in extras.values() for requirement in extra]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=settings["keywords"],
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=[settings["lib_path"], settings["lib_path"] + ".*"]),
    package_data={settings["lib_path"]: ["sample/*", "py.typed", "explore/map.*", "encoders/known_models.json"]},
    python_requires=f">={settings['min_python']},<{settings['below_python']}",
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": settings["console_scripts"].split()},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        *[f"Programming Language :: Python :: 3.{minor}" for minor in minors],
    ],
    zip_safe=False,
)
