"""The server inside a serving image: a thin ASGI application over onnxruntime, copied into the image alone.

It imports the standard library, numpy, onnxruntime, uvicorn, httptools, uvloop and itself (relatively, since the
package has another name in the image), and nothing else of `mlops`.
Leaves to others: who may call it, TLS and routing between versions (the platform, mlops/deploy).
"""
