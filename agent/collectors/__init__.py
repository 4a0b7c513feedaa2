"""Where metrics come from: one source, one module.

Every collector is blocking and has no threads of its own on the normal path: the node agent calls
it in a worker thread with a deadline. A reading that fails drops its own field and says why in
`errors`; it never drops the sample, and nothing ever stands in for a value that was not measured.
"""
