.PHONY: gen
gen:
	@rm -rf gen && mkdir gen
	@.venv/bin/python -m grpc_tools.protoc -Iprotos --python_out=gen --grpc_python_out=gen --mypy_out=gen --mypy_grpc_out=gen $$(cd protos && find headway -name '*.proto' | sort)
