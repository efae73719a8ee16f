// Sliding windows of an image [H, W, CF beats], all KY x KX elements in one beat, element (0, 0) in the low bits. Order of the
// output: per output pixel, CF beats. Elements outside the image are zero.
// The image runs through delay lines, of a row for every further row of the kernel and of a pixel for every further column: when
// the last element of a window comes in, the others stand at the ends of the lines. After the image, as many beats of nothing
// follow as the last window reaches below it, so a frame never waits for the next one. What a line still holds of
// another row or another frame lies outside the image as the window sees it, and is masked.
// Needs windows that start in the order of the image: (OW-1)*SX < SY*W, and at most (K-1)*D rows or columns of padding in front.
module dp_window_parallel #(
  parameter int WIDTH = 8,           // bits of a beat
  parameter int CF = 1,              // beats of a pixel
  parameter int H = 8, W = 8, OH = 8, OW = 8,
  parameter int KY = 3, KX = 3, SY = 1, SX = 1, DY = 1, DX = 1, PT = 1, PL = 1,
  parameter int SCAN = 73            // pixels of a frame, those of nothing included
) (
  input  logic clk, rst,
  input  logic [WIDTH-1:0] s_data, input logic s_valid, output logic s_ready,
  output logic [KY*KX*WIDTH-1:0] m_data, output logic m_valid, input logic m_ready
);
  localparam int FIRST = ((KY-1)*DY - PT)*W + (KX-1)*DX - PL;  // pixel that completes the first window
  localparam int REACH = FIRST + (OH*SY + SY)*W + OW*SX;
  localparam int IW = $clog2((SCAN > REACH ? SCAN : REACH) + 1);
  localparam int CW = CF > 1 ? $clog2(CF) : 1, OYW = $clog2(OH+1), OXW = $clog2(OW+1);
  localparam int YW = $clog2(H + PT + OH*SY + KY*DY + 2) + 1, XW = $clog2(W + PL + OW*SX + KX*DX + 2) + 1;

  logic [IW-1:0] at;                 // pixel of the scan
  logic [IW-1:0] row, want;          // pixels that complete the first window of this row, and the next window
  logic [CW-1:0] c;
  logic [OYW-1:0] oy;  logic [OXW-1:0] ox;
  logic signed [YW-1:0] y0;  logic signed [XW-1:0] x0;  // first row and column of the next window
  logic done;                        // every window of this frame is out

  wire in_image = at < IW'(H*W);
  wire step = m_ready || !m_valid;
  wire go = step && (s_valid || !in_image);
  wire emit = at == want && !done;
  wire last_c = c == CW'(CF-1), last_at = at == IW'(SCAN-1);
  wire last_ox = ox == OXW'(OW-1), last_oy = oy == OYW'(OH-1);
  assign s_ready = step && in_image;

  // ---- rows[r]: the newest pixel of the kernel's row r; taps[r][k]: its column k
  logic [KY-1:0][WIDTH-1:0] rows;
  assign rows[KY-1] = s_data;
  if (KY > 1) begin : g_lines
    dp_delay #(.WIDTH((KY-1)*WIDTH), .DEPTH(DY*W*CF)) lines (.clk, .rst, .en(go), .x(rows[KY-1:1]), .y(rows[KY-2:0]));
  end
  logic [KX-1:0][KY-1:0][WIDTH-1:0] columns;
  assign columns[KX-1] = rows;
  if (KX > 1) begin : g_pixels
    dp_delay #(.WIDTH((KX-1)*KY*WIDTH), .DEPTH(DX*CF)) pixels (.clk, .rst, .en(go), .x(columns[KX-1:1]), .y(columns[KX-2:0]));
  end

  for (genvar r = 0; r < KY; r++) begin : g_row
    wire signed [YW-1:0] y = y0 + YW'(r*DY);
    for (genvar k = 0; k < KX; k++) begin : g_tap
      wire signed [XW-1:0] x = x0 + XW'(k*DX);
      wire hit = y >= 0 && y < YW'(H) && x >= 0 && x < XW'(W);
      always_ff @(posedge clk) if (go) m_data[(r*KX+k)*WIDTH +: WIDTH] <= hit ? columns[k][r] : '0;
    end
  end

  always_ff @(posedge clk) begin
    if (rst) begin
      at <= '0; c <= '0; ox <= '0; oy <= '0; done <= 1'b0; m_valid <= 1'b0;
      row <= IW'(FIRST); want <= IW'(FIRST); y0 <= -YW'(PT); x0 <= -XW'(PL);
    end else begin
      if (step) m_valid <= go && emit;
      if (go) c <= last_c ? '0 : c + 1'b1;
      if (go && last_c) begin
        at <= last_at ? '0 : at + 1'b1;
        if (emit) begin
          ox <= last_ox ? '0 : ox + 1'b1;
          x0 <= last_ox ? -XW'(PL) : x0 + XW'(SX);
          want <= last_ox ? row + IW'(SY*W) : want + IW'(SX);
          if (last_ox) begin
            oy <= last_oy ? '0 : oy + 1'b1;
            y0 <= last_oy ? -YW'(PT) : y0 + YW'(SY);
            row <= row + IW'(SY*W);
            done <= last_oy;
          end
        end
        if (last_at) begin
          done <= 1'b0; row <= IW'(FIRST); want <= IW'(FIRST);
        end
      end
    end
  end
endmodule
