"""Artifacts for browsers: a static folder with a page, onnxruntime-web and the artifact.

`page.py` writes the folder, `libraries.py` knows the JavaScript libraries it needs, `npm.py` fetches them,
and `static/` holds our own page and modules, which are shipped as they are.
"""
