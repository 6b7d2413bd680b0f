"""The runner: programs that prepare, train and evaluate. A spec file in; events, files and a result file out.

They know nothing of Temporal, gRPC or storage. The only place where torch, transformers and peft are imported.
"""
