"""What of this package PyInstaller cannot see: most of it is imported by name, when needed."""

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

hiddenimports = collect_submodules("jessymem", lambda name: ".__pyinstaller" not in name)
# The metadata tell numba of its entry point, and compiled code of one release from another's.
found = collect_data_files("jessymem") + copy_metadata("jessymem")
datas = found  # codespell:ignore datas - PyInstaller calls it so
