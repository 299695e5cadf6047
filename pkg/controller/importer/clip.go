/*
Copyright The clustermesh Authors.

Licensed under the Apache License, Version 2.0 (the "License");
you may not use this file except in compliance with the License.
You may obtain a copy of the License at

    http://www.apache.org/licenses/LICENSE-2.0

Unless required by applicable law or agreed to in writing, software
distributed under the License is distributed on an "AS IS" BASIS,
WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
See the License for the specific language governing permissions and
limitations under the License.
*/

package importer

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// maxMessage is the most bytes of a text for people, and maxIdentity of a field in
	// which a peer says who it is: our API takes no status without bounds.
	maxMessage  = 1024
	maxIdentity = 128
)

// clip makes a text that a peer may have had a part in fit to be stored and shown: at
// most n bytes, and what cannot be printed as Go writes it.
func clip(text string, n int) string {
	const more = "..."
	var b strings.Builder
	cut := 0 // how much of it stays where it is too long
	for i, r := range text {
		piece := string(r)
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(text[i:], piece): // not UTF-8
			piece = `\x` + strconv.FormatUint(uint64(text[i]), 16)
		case !unicode.IsPrint(r):
			quoted := strconv.QuoteRune(r)
			piece = quoted[1 : len(quoted)-1]
		}
		if b.Len()+len(piece) > n {
			return b.String()[:cut] + more
		}
		b.WriteString(piece)
		if b.Len() <= n-len(more) {
			cut = b.Len()
		}
	}
	return b.String()
}
