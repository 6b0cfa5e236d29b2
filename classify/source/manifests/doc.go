// Package manifests reads the objects of a cluster from files, as kubectl get -o yaml prints them and kubectl apply
// takes them, and serves a directory of such files as a source.Source that follows changes of the files.
//
// Files end in .yaml, .yml or .json and may lie in subfolders. A file may hold several documents and Lists. Decoding is
// strict, and objects are checked for what an API server would refuse and what would make policy ambiguous. Whatever is
// wrong is named with file, document and field, and the whole last good state of that file stays in force, while other
// files go on to be updated. To change a file in one step, write another one beside it and rename it.
package manifests
