// Reads tars from standard input, each after its length (8 bytes, big-endian), and says in a line of JSON what Go's
// archive/tar reads in each: the entries up to the end or the first error, and that error.
package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io"
	"math/big"
	"os"
	"strings"
	"time"
)

type entry struct {
	Kind    string            `json:"kind"`
	Name    string            `json:"name"`
	Link    string            `json:"link"`
	Size    int64             `json:"size"`
	Mode    int64             `json:"mode"`
	UID     int               `json:"uid"`
	GID     int               `json:"gid"`
	Mtime   string            `json:"mtime"`
	Major   int64             `json:"major"`
	Minor   int64             `json:"minor"`
	Xattrs  map[string]string `json:"xattrs"`
	Content string            `json:"content"`
}

type answer struct {
	Entries []entry `json:"entries"`
	Error   string  `json:"error"`
}

const xattr = "SCHILY.xattr."

func nanoseconds(moment time.Time) string {
	whole := new(big.Int).Mul(big.NewInt(moment.Unix()), big.NewInt(1_000_000_000))
	return whole.Add(whole, big.NewInt(int64(moment.Nanosecond()))).String()
}

func describe(header *tar.Header, content string) entry {
	xattrs := map[string]string{}
	for key, value := range header.PAXRecords {
		if strings.HasPrefix(key, xattr) {
			xattrs[hex.EncodeToString([]byte(key[len(xattr):]))] = hex.EncodeToString([]byte(value))
		}
	}
	return entry{
		Kind: string(rune(header.Typeflag)), Size: header.Size, Mode: header.Mode, UID: header.Uid, GID: header.Gid,
		Name: hex.EncodeToString([]byte(header.Name)), Link: hex.EncodeToString([]byte(header.Linkname)),
		Mtime: nanoseconds(header.ModTime), Major: header.Devmajor, Minor: header.Devminor,
		Xattrs: xattrs, Content: content,
	}
}

func read(data []byte, most int64) answer {
	reader, said := tar.NewReader(bytes.NewReader(data)), answer{Entries: []entry{}}
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return said
		}
		if err != nil {
			said.Error = err.Error()
			return said
		}
		hash := sha256.New()
		if header.Typeflag == tar.TypeReg && header.Size <= most {
			if _, err := io.Copy(hash, reader); err != nil {
				said.Error = err.Error()
				return said
			}
		}
		said.Entries = append(said.Entries, describe(header, hex.EncodeToString(hash.Sum(nil))))
	}
}

func main() {
	in, out := bufio.NewReaderSize(os.Stdin, 1<<20), json.NewEncoder(os.Stdout)
	for {
		var length [8]byte
		if _, err := io.ReadFull(in, length[:]); err != nil {
			return
		}
		data := make([]byte, binary.BigEndian.Uint64(length[:]))
		if _, err := io.ReadFull(in, data); err != nil {
			panic(err)
		}
		if err := out.Encode(read(data, 64<<20)); err != nil {
			panic(err)
		}
	}
}
